"""The words of the project: docstrings, comments, messages, names and documents use the field's own.

python tests/test_style.py [FILES or FOLDERS]    print what to change, one `file:line: message` a line
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = {
    "__pycache__",
    "node_modules",
    "golden",
    "kept",
    "RESULTS.md",
}  # the last holds names of rows of the benchmarks
MAX_WORDS = 25  # in a sentence of a docstring

# (pattern of words to avoid, the word to use). A space in a pattern also matches a line break, or `_` in a name.
WORDS = [
    (r"pictures?", "image"),
    (r"go(es|ing)? on with", "resume, continue"),
    (r"gone on|went on with", "resumed"),
    (r"(go(es|ing)?|gone|went) back to", "roll back to, return to"),
    (r"(left|leaves?|leaving)( \w+)?( \w+)? (out|aside)", "skip, ignore"),
    (r"for want of", "out of, without"),
    (r"ask(s|ed|ing)? for|asked", "request"),
    (r"surest", "highest confidence"),
    (r"tells?|told|telling", "report, show, distinguish"),
    (r"fillers?", "padding batch, padding"),
    (r"anew", "again, from scratch"),
    (r"amid", "during"),
    (r"so many", "the number of, that many"),
    (r"nobody", "no process, no one by name"),
    (r"who(m|so)?ever", "the caller, the process that"),
    (r"(go(es|ing)?|gone|went) bad", "non-finite, NaN or infinite"),
    (r"com(es?|ing) out|came out", "results"),
    (r"stands?|stood", "is, means"),
    (r"heed(s|ed|ing)?", "check, follow"),
    (r"deaf", "ignores"),
    (r"unasked", "automatically"),
    (r"lest", "so that ... not"),
    (r"whence|whither|thence|hither", "from where, from there"),
    (r"at (its|their|his) hands", "by"),
]
SPACE = r"[\s#]+"  # in a comment the next line begins with #
COMPILED = [(re.compile(rf"\b(?:{words.replace(' ', SPACE)})\b", re.IGNORECASE), use) for words, use in WORDS]
# Expressions of the field in which such a word is right.
RIGHT = re.compile(r"stand-ins?|standalone|stands? in for|stands? for", re.IGNORECASE)
# String literals (in an f-string its constant parts) that keep a word: (file, the whole literal).
KEPT = {
    (
        "data/Objects365.yaml",
        "  Cabinet/shelf, Handbag/Satchel, Bracelet, Plate, Picture/Frame, Helmet, Book, Gloves, Storage box, Boat,",
    ),  # names of classes
    # Names of rows and flags of the benchmarks: results of several versions are compared by them.
    *((f"benchmarks/{name}.py", "--pictures") for name in ("ap", "gpu", "labels", "memory", "scale")),
    ("benchmarks/ap.py", " pictures, "),
    ("benchmarks/epoch.py", " pictures, "),
    ("benchmarks/labels.py", " pictures"),
    ("benchmarks/nms.py", "NMS of 4 pictures, "),
    ("benchmarks/scale.py", "a picture through the loader"),
    ("benchmarks/untrained.py", " pictures"),
    ("tests/evolution/test_optuna_store.py", "nobody"),  # a user of the system
    ("utils/evolution/optuna_store.py", "already finished|Cannot tell a"),  # Optuna's words
}

# A function's docstring begins with one of these; add a verb that is missing.
VERBS = frozenset(
    """
    abort accept accumulate acquire adapt add adjust admit advance align allocate allot allow alternate analyse
    analyze announce answer append apply arrange ask assemble assert assign attach augment average avoid await balance
    begin bind blend blur bound box branch break bring broadcast build cache calculate call cancel capture cast catch
    cause change charge check choose cite claim clamp clean clear clip clone close collate collect color colour
    combine compare compile complete compose compress compute concatenate configure confirm connect construct continue
    convert convolve copy correct count cover create crop cut darken deactivate decide decode decompress decrease
    defer define delay delete deliver demand dequantize derive describe deserialize destroy detach detect determine
    disable discard disconnect dispatch display distinguish distribute divide do double download draw drop dump emit
    empty enable encode end enforce enlarge enqueue ensure enter enumerate equalise equalize erase escape estimate
    evaluate evolve exclude execute exit expand expect explain export extend extract fail feed fetch fill filter
    finalise finalize find finish fit fix flag flatten flip flush fold follow forbid force forget fork format forward
    free freeze fuse gather generate get give group grow guard guess halve hand handle hash hide hold identify ignore
    implement import include increase index infer inform initialise initialize insert inspect install interpolate
    interpret interrupt invert isolate iterate jitter join jump keep kill label launch lay lead leave let lift limit
    link list load localise localize locate lock log look lower make map mark mask match measure merge mirror mix mock
    modify monitor move multiply mutate mute name normalise normalize note notify nudge number observe offer offset
    omit open optimise optimize order overlap overlay override overwrite pack pad paint parallelise parse partition
    pass paste patch pause perform permute pick pin place plan play plot point poison poll pop populate postpone
    predict prefetch prefix prepare prepend preserve prevent prime print process produce profile project propagate
    protect prove provide prune publish pull push put quantize query queue raise randomise randomize rank reach read
    reap rearrange rebuild receive recognise recognize recompute reconstruct record recover reduce refer refill
    refresh refuse register reject release reload remap remember remove rename render reopen reorder repeat replace
    replay report reproduce request require rescale reserve reset reshape resize resolve restart restore restrict
    resume retrain retry return reuse reverse reweight rewind rewrite roll rotate round route run sample save say
    scale scan schedule score search seed select send separate serialise serialize serve set settle shade shard share
    shift show shrink shuffle shut signal silence simulate skip sleep slice slow smooth snap solve sort spawn specify
    split spread square squeeze stack stage start state step stop store stream stretch strip subclass subsample
    subtract suggest sum summarise summarize supply suppress swap switch sync synchronise synchronize tag take tear
    test throw tile time toggle tokenize toss trace track train transfer transform translate transpose traverse trim
    truncate try tune turn undo uninstall unlink unlock unpack unpickle unregister unscale unwrap unzip update upgrade
    upload upper upsample use validate verify view visit wait wake walk warm warn warp watch weigh widen wind wipe
    wire withhold work wrap write yield zip
    """.split()
)
# No docstring at all begins with one of these.
OPENINGS = frozenset(
    """
    after afterwards although amid as at because before beside between beyond by every except for from how if in into
    its of on only out so than that their there these this those though through to until unless upon what whatever when
    where whereas wherever whether which while who whoever whom whose why with within without
    """.split()
)
DECORATORS_OF_VALUES = {"property", "cached_property", "setter"}


class Finding(NamedTuple):
    line: int
    message: str


class Text(NamedTuple):
    """A piece of prose and the line that it begins on."""

    line: int
    content: str


def all_files() -> list[Path]:
    """List the files that hold code or prose, relative to the root."""
    patterns = ["*.py", "README.md", "requirements.txt", "pyproject.toml", "Makefile", ".ci/run", "weights/*.md"]
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    for folder in ("models", "utils", "data", "benchmarks", "tests", "docs"):
        found += [p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".yaml", ".md", ".txt", ".html")]
    return sorted({path.relative_to(ROOT) for path in found if not SKIPPED & set(path.parts)})


def avoided_words(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield (lines into the text, the words found, what to use) for each expression to avoid."""
    right = [match.span() for match in RIGHT.finditer(text)]
    for pattern, use in COMPILED:
        for match in pattern.finditer(text):
            if not any(start <= match.start() < end for start, end in right):
                yield text.count("\n", 0, match.start()), " ".join(match.group().split()), use


def words_of(name: str) -> str:
    """Split an identifier into its words: `pictures_in`, `PictureCache` -> `pictures in`, `Picture Cache`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ")


def comments(source: str) -> Iterator[Text]:
    """Yield the comments, those on consecutive lines of their own as one text."""
    start, block, last = 0, [], -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            follows = block and line == last + 1 and token.line.lstrip().startswith("#")
            if block and not follows:
                yield Text(start, "\n".join(block))
            start, block = (start, [*block, token.string]) if follows else (line, [token.string])
            last = line
    if block:
        yield Text(start, "\n".join(block))


def strings(tree: ast.AST) -> Iterator[Text]:
    """Yield all string literals, docstrings and the constant parts of f-strings among them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Text(node.lineno, node.value)


def defined_names(tree: ast.AST) -> Iterator[Text]:
    """Yield the names that a file gives: functions, classes, arguments, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield Text(node.lineno, node.name)
        elif isinstance(node, ast.arg):
            yield Text(node.lineno, node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield Text(node.lineno, node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield Text(node.lineno, node.attr)


def check_words(texts: list[Text], file: str) -> list[Finding]:
    """Return a finding for each expression to avoid."""
    return [
        Finding(text.line + offset, f"{word!r} -> {use}")
        for text in texts
        if (file, text.content) not in KEPT
        for offset, word, use in avoided_words(text.content)
    ]


def sentences(docstring: str) -> list[str]:
    """Split a docstring into sentences. Indented blocks (examples, tables, lists) are no sentences.

    A line that begins with `name:` begins one. Short items in a row behind a colon (a legend of letters) are left off.
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", docstring):
        if paragraph and not re.search(r"^[ \-*|>]|\S  ", paragraph, re.MULTILINE):
            found += re.split(r"(?<=[.!?])\s+(?=[A-Z`0-9(]|\w+: )|\n(?=`?\w+`?(?:, `?\w+`?)*: )", paragraph)
    return [without_legend(sentence) for sentence in found]


def without_legend(sentence: str) -> str:
    """Cut what follows a colon where that is a row of three or more items of five words at most."""
    head, _, tail = sentence.partition(": ")
    items = tail.split(",")
    is_legend = len(items) > 2 and all(len(item.split()) <= 5 for item in items)
    return head if is_legend else sentence


def check_first_line(node: ast.AST, docstring: str) -> Iterator[str]:
    """Yield what is wrong with the opening of a docstring."""
    opening = docstring.split(maxsplit=1)[0] if docstring.strip() else ""
    word = opening.strip("`'\"(),.:;").lower()
    name = getattr(node, "name", "module")
    if word in OPENINGS:
        yield f"docstring of {name} begins with {opening!r} -> verb (function) or noun (class, property, module)"
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not name.startswith("test"):
        decorators = {ast.unparse(d).split("(")[0].split(".")[-1] for d in node.decorator_list}
        if not decorators & DECORATORS_OF_VALUES and (word not in VERBS or opening[0] in "`'\"("):
            yield f"docstring of {name} begins with {opening!r} -> an imperative verb (a new one: add to VERBS)"
    first = sentences(docstring)[:1]
    if first and ";" in first[0]:
        yield f"semicolon in the first sentence of {name}'s docstring -> two sentences"


def check_docstrings(tree: ast.AST) -> list[Finding]:
    """Return findings on openings and on the lengths of sentences."""
    findings = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            continue
        docstring = ast.get_docstring(node)
        if docstring:
            line = node.body[0].lineno
            findings += [Finding(line, message) for message in check_first_line(node, docstring)]
            for sentence in sentences(docstring):
                count = len(sentence.split())
                if count > MAX_WORDS:
                    beginning = " ".join(sentence.split()[:5])
                    findings.append(Finding(line, f"a sentence of {count} words ({beginning} ...) -> {MAX_WORDS}"))
    return findings


def check_prefix(tree: ast.AST, file: str) -> list[Finding]:
    """Return a finding for each message that brings its own WARNING: utils/console.py alone adds the prefix."""
    if file.split("/")[0] in ("tests", "benchmarks") or file == "utils/console.py":
        return []
    return [
        Finding(text.line, f"{text.content[:20]!r} -> console.warn, which adds the prefix")
        for text in strings(tree)
        if re.match(r"warning\b", text.content, re.IGNORECASE) and " " in text.content.strip()
    ]


def check_file(path: Path) -> list[Finding]:
    """Return what a file (relative to the root) has to change, by line."""
    source, file = (ROOT / path).read_text(encoding="utf-8"), path.as_posix()
    if path.suffix != ".py":
        return check_words([Text(number, line) for number, line in enumerate(source.splitlines(), 1)], file)
    tree = ast.parse(source)
    texts = list(comments(source))
    texts += [Text(text.line, words_of(text.content)) for text in defined_names(tree)]
    if file != "tests/test_style.py":  # its strings are the table
        texts += strings(tree)
    return sorted(set(check_words(texts, file) + check_docstrings(tree) + check_prefix(tree, file)))


@pytest.mark.parametrize("path", all_files(), ids=str)
def test_style(path):
    findings = check_file(path)
    assert not findings, "".join(f"\n{path.as_posix()}:{line}: {message}" for line, message in findings)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", []),
        ("An image", []),
        ("Pictures of cats", ["Pictures"]),
        ("batches that are left\n# out of it", ["left # out"]),
        ("a stand-in for fontconfig", []),
        ("the number stands there", ["stands"]),
        (words_of("ask_for"), ["ask for"]),
        (words_of("PictureCache"), ["Picture"]),
    ],
)
def test_words_to_avoid(text, words):
    assert [word for _, word, _ in avoided_words(text)] == words


@pytest.mark.parametrize(
    "source, count",
    [
        ("", 0),
        ("def f():\n    '''Return the number.'''\n", 0),
        ("def f():\n    '''Seconds on a clock.'''\n", 1),
        ("def f():\n    '''`value` or its default.'''\n", 1),
        ("class A:\n    '''Number of steps.'''\n", 0),
        ("class A:\n    '''Where it is.'''\n", 1),
        ("class A:\n    @property\n    def f(self):\n        '''Number of steps.'''\n", 0),
        (f"'''Letters: {'B batch, ' * 20}'''\n", 0),
        ("def test_f():\n    '''A promise; a test states one.'''\n", 1),
        (f"'''{'word ' * 26}'''\n", 1),
    ],
)
def test_docstrings(source, count):
    assert len(check_docstrings(ast.parse(source))) == count


def main(words: list[str]) -> int:
    """Print the findings of files and folders, or of all of them, and return their number."""
    wanted = [Path(word).resolve().relative_to(ROOT) for word in words]
    files = [p for p in all_files() if not wanted or any(p == w or w in p.parents for w in wanted)]
    total = 0
    for path in files:
        for line, message in check_file(path):
            print(f"{path.as_posix()}:{line}: {message}")
            total += 1
    print(f"{total} findings in {len(files)} files", file=sys.stderr)
    return total


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
