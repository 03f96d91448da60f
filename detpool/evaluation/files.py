"""The writer of whole files, under the name that programs know it by."""

from detpool.files import write_text_atomically

__all__ = ["write_text_atomically"]
