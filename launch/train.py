"""deepspeed launch/train.py --deepspeed ds_configs/zero2.json        (flags: python launch/train.py --help)"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

from ds_rag.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
