"""Line budgets: modules of at most 400 lines, functions of at most 60."""

import ast
import sys
from pathlib import Path

MODULE, FUNCTION = 400, 60


def main() -> int:
    """Print what is over budget; returns the exit code."""
    over = []
    for path in sorted(Path("src").rglob("*.py")):
        text = path.read_text("utf-8")
        if (lines := text.count("\n")) > MODULE:
            over.append(f"{path}: {lines} lines, at most {MODULE}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION:
                    over.append(
                        f"{path}:{node.lineno}: {node.name}: {length} lines, at most {FUNCTION}"
                    )
    sys.stdout.write("".join(f"{line}\n" for line in over))
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
