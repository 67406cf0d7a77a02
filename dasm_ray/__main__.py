"""``python -m dasm_ray`` is the command line."""

from __future__ import annotations

from dasm_ray.cli import main

main(prog_name="python -m dasm_ray")
