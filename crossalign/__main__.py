"""python -m crossalign: the command line."""

from crossalign.cli.main import main

raise SystemExit(main())
