"""python -m crossalign: the command line."""

from crossalign.command_line import main

raise SystemExit(main())
