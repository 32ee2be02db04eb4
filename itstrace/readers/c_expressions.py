"""The C expressions of an event's `print fmt`: parsed once, evaluated for one row at a time.

They are what TP_printk holds, with macros expanded: `REC->field`, casts, operators, and the kernel's
`__print_*` and `__get_*` helpers. What is beyond this raises `BeyondError`, and the caller prints the fields
as they are.

Source: include/trace/stages/stage3_trace_output.h (v6.12)
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from itstrace.readers.base import column_name

Row = Mapping[str, object]
Evaluate = Callable[[Row], object]

MASK_64 = (1 << 64) - 1
#: Deeper nesting than any print fmt has.
MAX_DEPTH = 60


class BeyondError(Exception):
    """The expression is more than is understood here, or the row lacks what it needs."""


@dataclass(frozen=True, slots=True)
class FieldReference:
    """`REC->name`."""

    name: str

    def __call__(self, row: Row) -> object:
        """Give the field's value."""
        try:
            value = row[column_name(self.name)]
        except KeyError as error:
            raise BeyondError(f"the row has no field {self.name}") from error
        if value is None:
            raise BeyondError(f"{self.name} is unknown")
        return int(value) if isinstance(value, bool) else value


@dataclass(frozen=True, slots=True)
class ValueTable:
    """The names of a field's values, as `__print_symbolic` or `__print_flags` has them."""

    names: tuple[tuple[int, str], ...]
    #: what stands between the names of flags; None: the value has one name
    delimiter: str | None = None

    def text(self, value: int) -> str:
        """Give the name of a value, or the names of its bits; hex for what has none.

        Source: kernel/trace/trace_output.c:trace_print_symbols_seq, trace_print_flags_seq (v6.12)
        """
        value &= MASK_64
        if self.delimiter is None:
            return next((name for number, name in self.names if number & MASK_64 == value), f"0x{value:x}")
        parts, rest = [], value
        for mask, name in self.names:
            if not rest:
                break
            if rest & mask == mask:
                parts.append(name)
                rest &= ~mask
        if rest:
            parts.append(f"0x{rest:x}")
        return self.delimiter.join(parts)


@dataclass(slots=True)
class Parser:
    """Reads one `print fmt`: its format string and its arguments."""

    text: str
    tokens: list[str] = field(default_factory=list)
    position: int = 0
    depth: int = 0
    #: tables of those fields that are printed through one as they are
    tables: dict[str, ValueTable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        end = 0
        for match in _TOKEN.finditer(self.text):
            if match.start() != end:
                break
            end = match.end()
            if match.lastgroup is not None:
                self.tokens.append(match[0].strip())
        if end != len(self.text):
            raise BeyondError(f"cannot read {self.text[end : end + 20]!r}")

    def arguments(self) -> list[Evaluate]:
        """Read what is separated by commas, to the end."""
        found = [self._ternary()]
        while self._take(","):
            found.append(self._ternary())
        if self.position != len(self.tokens):
            raise BeyondError(f"stops at {self._peek()!r}")
        return found

    def _peek(self, ahead: int = 0) -> str:
        at = self.position + ahead
        return self.tokens[at] if at < len(self.tokens) else ""

    def _take(self, lexeme: str) -> bool:
        if self._peek() != lexeme:
            return False
        self.position += 1
        return True

    def _expect(self, lexeme: str) -> None:
        if not self._take(lexeme):
            raise BeyondError(f"{self._peek()!r} stands where {lexeme!r} should")

    def _ternary(self) -> Evaluate:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise BeyondError("nested too deeply")
        condition = self._binary(0)
        if self._take("?"):
            if self._take(":"):  # gcc: `a ?: b`
                condition = _choice(condition, condition, self._ternary())
            else:
                then = self._ternary()
                self._expect(":")
                condition = _choice(condition, then, self._ternary())
        self.depth -= 1
        return condition

    def _binary(self, level: int) -> Evaluate:
        if level == len(_LEVELS):
            return self._unary()
        left = self._binary(level + 1)
        while self._peek() in _LEVELS[level]:
            lexeme = self._peek()
            self.position += 1
            left = _operation(lexeme, left, self._binary(level + 1))
        return left

    def _unary(self) -> Evaluate:
        lexeme = self._peek()
        if lexeme in _UNARY:
            self.position += 1
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise BeyondError("nested too deeply")
            operand, apply = self._unary(), _UNARY[lexeme]
            self.depth -= 1
            return lambda row: wrap(apply(number(operand(row))))
        if lexeme == "(" and (c_type := self._cast()) is not None:
            return _convert(c_type, self._unary())
        return self._postfix(self._primary())

    def _cast(self) -> str | None:
        """Take `(type)` if that is what comes."""
        words, ahead = [], 1
        while (word := self._peek(ahead)) not in (")", ""):
            words.append(word)
            ahead += 1
        # A type is words and stars, and at least its first word is known for one.
        if not words or not _is_type(words) or self._peek(ahead) != ")":
            return None
        self.position += ahead + 1
        return " ".join(words)

    def _primary(self) -> Evaluate:
        lexeme = self._peek()
        self.position += 1
        if lexeme == "(":
            inner = self._ternary()
            self._expect(")")
            return inner
        if lexeme.startswith('"'):
            parts = [unquote(lexeme)]
            while self._peek().startswith('"'):
                parts.append(unquote(self._peek()))
                self.position += 1
            text = "".join(parts)
            return lambda _: text
        if lexeme.startswith("'"):
            character = unquote(lexeme)
            if len(character) != 1:
                raise BeyondError(f"{lexeme} is no character")
            return lambda _: ord(character)
        if lexeme[:1].isdigit():
            value = _integer(lexeme)
            return lambda _: value
        if lexeme in ("REC", "__entry"):
            return _record
        if self._peek() == "(":
            return self._call(lexeme)
        raise BeyondError(f"{lexeme!r} has no value here")

    def _postfix(self, base: Evaluate) -> Evaluate:
        while True:
            if self._take("->"):
                name = self._peek()
                self.position += 1
                if base is not _record:
                    raise BeyondError("only fields of the record are known")
                base = FieldReference(name)
            elif self._take("["):
                index, array = self._ternary(), base
                self._expect("]")
                base = _element(array, index)
            else:
                return base

    def _call(self, name: str) -> Evaluate:
        self._expect("(")
        if name.startswith("__get_"):
            reference = FieldReference(self._peek())
            self.position += 1
            self._expect(")")
            return _getter(name, reference)
        arguments: list[Evaluate] = []
        pairs: list[tuple[int, str]] = []
        while not self._take(")"):
            if self._take("{"):
                value = self._ternary_or_nothing()
                self._expect(",")
                label = self._ternary()
                self._expect("}")
                if value is not None:
                    pairs.append((value, str(label({}))))
            else:
                arguments.append(self._ternary())
            if self._peek() != ")":
                self._expect(",")
        return self._helper(name, arguments, tuple(pairs))

    def _ternary_or_nothing(self) -> int | None:
        """Read a table's number; None where it is a name whose value the format does not tell."""
        if _IDENTIFIER.fullmatch(self._peek()) and self._peek(1) == ",":
            self.position += 1
            return None
        return number(self._ternary()({}))

    def _helper(self, name: str, arguments: list[Evaluate], pairs: tuple[tuple[int, str], ...]) -> Evaluate:
        match name.removesuffix("_u64"), arguments:
            case "__print_symbolic", [value]:
                return self._named(value, ValueTable(pairs))
            case "__print_flags", [value, delimiter]:
                return self._named(value, ValueTable(pairs, str(delimiter({}))))
            case (("__print_hex" | "__print_hex_str"), [array, length]):
                between = "" if name.endswith("str") else " "
                return lambda row: between.join(f"{b:02x}" for b in octets(array(row))[: number(length(row))])
            case "__print_array", [array, length, _]:
                return lambda row: _array_text(array(row), number(length(row)))
            case "__builtin_expect", [value, _]:
                return value
            case _:
                raise BeyondError(f"{name} is unknown")

    def _named(self, value: Evaluate, table: ValueTable) -> Evaluate:
        if isinstance(value, FieldReference):
            self.tables.setdefault(value.name, table)
        return lambda row: table.text(number(value(row)))


# -- values -----------------------------------------------------------------------------------------------


def number(value: object) -> int:
    """Give a value as an integer.

    Raises: BeyondError where it is none.
    """
    if isinstance(value, int):
        return int(value)
    raise BeyondError(f"{value!r} is no number")


def octets(value: object) -> bytes:
    """Give an array of bytes.

    Raises: BeyondError where it is none.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return bytes(number(each) & 0xFF for each in value)
    raise BeyondError(f"{value!r} is no array")


def wrap(value: int) -> int:
    """Keep a value within 64 bits."""
    return value if -(1 << 63) <= value <= MASK_64 else value & MASK_64


def unquote(lexeme: str) -> str:
    """Give what a C string or character literal holds."""
    return _ESCAPE.sub(lambda match: _ESCAPES.get(match[1]) or _escaped(match[1]), lexeme[1:-1])


def _escaped(code: str) -> str:
    if code[0] == "x":
        return chr(int(code[1:], 16) & 0xFF)
    return chr(int(code, 8) & 0xFF) if code[0].isdigit() else code


def _record(_: Row) -> object:
    raise BeyondError("the record itself has no value")


def _integer(lexeme: str) -> int:
    digits = lexeme.rstrip("uUlL")
    try:
        return int(digits, 8) if re.fullmatch(r"0[0-7]+", digits) else int(digits, 0)
    except ValueError as error:
        raise BeyondError(f"{lexeme!r} is no number") from error


def _element(array: Evaluate, index: Evaluate) -> Evaluate:
    def evaluate(row: Row) -> object:
        values, at = array(row), number(index(row))
        if isinstance(values, Sequence) and not isinstance(values, str) and 0 <= at < len(values):
            return values[at]
        raise BeyondError("an array is too short")

    return evaluate


def _getter(name: str, reference: FieldReference) -> Evaluate:
    if name.endswith("_len"):
        return lambda row: len(octets(reference(row)))
    if name in ("__get_bitmask", "__get_cpumask", "__get_rel_bitmask", "__get_rel_cpumask"):
        return lambda row: _array_text(reference(row), 1 << 16)
    return reference


def _array_text(value: object, length: int) -> str:
    """Write an array as the kernel does.

    Source: kernel/trace/trace_output.c:trace_print_array_seq (v6.12)
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BeyondError(f"{value!r} is no array")
    return "{" + ",".join(f"0x{number(each) & MASK_64:x}" for each in value[:length]) + "}"


def _choice(condition: Evaluate, then: Evaluate, other: Evaluate) -> Evaluate:
    return lambda row: then(row) if condition(row) else other(row)


def _operation(lexeme: str, left: Evaluate, right: Evaluate) -> Evaluate:
    if lexeme == "&&":
        return lambda row: int(bool(left(row)) and bool(right(row)))
    if lexeme == "||":
        return lambda row: int(bool(left(row)) or bool(right(row)))
    apply = _OPERATORS[lexeme]
    return lambda row: wrap(int(apply(number(left(row)), number(right(row)))))


def _divide(left: int, right: int) -> int:
    if right == 0:
        raise BeyondError("division by zero")
    return -(-left // right) if (left < 0) != (right < 0) else left // right


def _is_type(words: Sequence[str]) -> bool:
    if words[0] in ("struct", "union", "enum"):
        words = words[2:]
    elif words[0] not in _TYPES and not words[0].endswith("_t"):
        return False
    return all(word == "*" or word in _TYPES or word.endswith("_t") for word in words)


def _convert(c_type: str, value: Evaluate) -> Evaluate:
    """Make a value one of another integer type; pointers and unknown types keep it."""
    words = c_type.split()
    bits, signed = _TYPES.get(words[-1], (0, False)) if "*" not in words else (0, False)
    if "long" in words:
        bits = 64
    if not bits:
        return value
    signed = signed and "unsigned" not in words

    def evaluate(row: Row) -> object:
        plain = value(row)
        if not isinstance(plain, int):
            return plain
        kept = plain & ((1 << bits) - 1)
        return kept - (1 << bits) if signed and kept >> (bits - 1) else kept

    return evaluate


_TOKEN = re.compile(
    r"""\s+|(?P<lexeme>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)+'|0[xX][0-9a-fA-F]+[uUlL]*|\d+[uUlL]*|[A-Za-z_]\w*"""
    r"""|->|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^~!?:,.(){}\[\]<>])""",
    re.DOTALL,
)
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}
#: Binary operators from loosest to tightest.
_LEVELS = (("||",), ("&&",), ("|",), ("^",), ("&",), ("==", "!="), ("<", ">", "<=", ">="), ("<<", ">>"),
           ("+", "-"), ("*", "/", "%"))  # fmt: skip
_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "|": operator.or_, "^": operator.xor, "&": operator.and_, "==": operator.eq, "!=": operator.ne,
    "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge,
    "<<": lambda a, b: a << (b & 63), ">>": lambda a, b: a >> (b & 63),
    "+": operator.add, "-": operator.sub, "*": operator.mul,
    "/": _divide, "%": lambda a, b: a - b * _divide(a, b),
}  # fmt: skip
_UNARY: dict[str, Callable[[int], int]] = {
    "-": operator.neg, "+": operator.pos, "~": operator.invert, "!": lambda a: int(not a),
}  # fmt: skip
#: Words of C types: bits and whether signed.
_TYPES: dict[str, tuple[int, bool]] = {
    "void": (0, False), "const": (0, False), "volatile": (0, False), "unsigned": (32, False),
    "signed": (32, True),
    "char": (8, True), "short": (16, True), "int": (32, True), "long": (64, True), "bool": (8, False),
    "u8": (8, False), "u16": (16, False), "u32": (32, False), "u64": (64, False),
    "s8": (8, True), "s16": (16, True), "s32": (32, True), "s64": (64, True),
    "__u8": (8, False), "__u16": (16, False), "__u32": (32, False), "__u64": (64, False),
    "__s8": (8, True), "__s16": (16, True), "__s32": (32, True), "__s64": (64, True),
}  # fmt: skip
