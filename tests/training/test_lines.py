"""Lines of runs that share a terminal."""

import io
import sys

from detpool.distributed import say
from detpool.training.lines import NamedLines, named_lines


def test_each_line_names_its_run(capsys):
    with named_lines("2 of 4"):
        say("a\nb")
        print("c", end="")
        print("d")
        print("e", file=sys.stderr)
        print("not whole", end="")
    print("after")
    said = capsys.readouterr()
    assert said.out == "[2 of 4] a\n[2 of 4] b\n[2 of 4] cd\n[2 of 4] not whole\nafter\n"
    assert said.err == "[2 of 4] e\n"


def test_lines_are_handed_on_whole_and_at_once():
    """So that those of several processes do not mix."""
    written = []

    class Terminal(io.StringIO):
        def write(self, text):
            written.append(text)
            return len(text)

        def isatty(self):
            return True

    stream = NamedLines(Terminal(), "1")
    print("a", 1, "b", file=stream)
    assert written == ["[1] a 1 b\n"]
    assert not stream.isatty()  # no progress bar
