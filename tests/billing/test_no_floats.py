"""Money is whole numbers: no float may appear anywhere in the till."""

import ast
from pathlib import Path

import pytest

import billing

ROOM = Path(billing.__file__).parent
FLOATING = {"FloatField", "float", "DecimalField", "total_seconds", "timestamp"}


def floats_in(source: str) -> list[int]:
    """The lines of a module that make or divide into a floating point number."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        is_literal = isinstance(node, ast.Constant) and isinstance(node.value, float)
        is_name = isinstance(node, ast.Name) and node.id in FLOATING
        is_attribute = isinstance(node, ast.Attribute) and node.attr in FLOATING
        is_division = isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.Div)
        if is_literal or is_name or is_attribute or is_division:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("module", sorted(ROOM.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOM)))
def test_no_module_of_the_till_uses_a_float(module):
    assert floats_in(module.read_text()) == []


@pytest.mark.parametrize(
    "source", ["x = 0.5", "x = a / b", "x /= b", "x = float(a)", "x = models.FloatField()", "x = t.total_seconds()"]
)
def test_the_check_sees_a_float(source):
    assert floats_in(source) == [1]
