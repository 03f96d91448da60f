"""Evaluates a checkpoint: `python eval.py ckpt_path=logs/.../runs/...`. See `python eval.py --help`.

Where detpool is installed without a checkout, the same program is `detpool-eval`.
"""

from detpool.cli.eval import main

if __name__ == "__main__":
    main()
