"""The house rules as functions of source text: test_house.py asks them about the tree, and shows what each finds.

`sources` maps dotted names of modules to their text. A finding is a string or a tuple for a person to read; where there
is nothing to find, the answer is empty.
"""

import ast
import functools
import io
import re
import tokenize
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from graphlib import CycleError, TopologicalSorter
from itertools import combinations
from textwrap import dedent

HEAVY = {
    *("accelerate", "bitsandbytes", "datasets", "deepeval", "evidently", "matplotlib", "pandas", "peft"),
    *("scipy", "sklearn", "torch", "transformers", "trl", "unsloth", "unsloth_zoo", "vllm"),
}
UNPICKLERS = {"cloudpickle", "dill", "joblib", "pickle", "shelve"}
# From the ground up: a module imports from its own floor and from those below. Recipes do not know each other.
FLOORS = {"rewards": 0, "data": 1, "eval": 2, "recipes.common": 3, "recipes": 4, "recipes.bench": 5, "recipes.tools": 5}
RECIPE = FLOORS["recipes"]
ROOM = "(?:recipes|rewards|data|eval)"
MODULE = re.compile(rf"{ROOM}(?:\.\w+)+")
SCRIPT = re.compile(r"recipes(?:/\w+)+\.py")
PROGRAM = re.compile(rf"""(?:^|[;:\n'"])\s*(?:from {ROOM}[\w.]* import\b|import (?:[\w., ]*[, ])?{ROOM}\b)""")
UNFORMATTED = re.compile(r"#\s*(?:fmt:\s*(?:skip|off)|yapf:\s*disable)")
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")
ARGUMENT = re.compile(r"--\S+")
# Up to the end of the line or of the quotation.
OTHER_COMMAND = re.compile(r"python (?:-m|recipes/)[^\n`]*")
CHOICES = ("learning_rate", "lr_scheduler_type", "max_grad_norm", "optim", "weight_decay")

parse = functools.cache(ast.parse)


def top(name: str) -> str:
    return name.split(".")[0]


def imports(node: ast.AST) -> list[str]:
    """Dotted names that this one statement imports, as modules or from them; relative imports are our own."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: everything outside functions and `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from at_import(child)


def is_docstring(node: ast.AST) -> bool:
    """Whether a statement is nothing but a string: the docstring of a module, a class, a function or a field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def strings(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Every string below `node` with what holds it, docstrings left out; a value in an f-string reads `_`."""
    for child in ast.iter_child_nodes(node):
        if is_docstring(child):
            continue
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value, node
        elif isinstance(child, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "_" for part in child.values)
            yield "".join(map(str, parts)), node
            for part in child.values:
                yield from strings(part) if isinstance(part, ast.FormattedValue) else ()
        else:
            yield from strings(child)


# Imports


def heavy_imports(source: str, also: Collection[str] = ()) -> set[str]:
    """Names from the heavy packages, or of the modules in `also`, that importing this source imports."""
    found = {name for node in at_import(parse(source)) for name in imports(node)}
    return {name for name in found if top(name) in HEAVY or name in also}


def runs_foreign_code(source: str) -> list[str]:
    """Ways to execute what a downloaded file says: unpickling, and `trust_remote_code=True`."""
    found = []
    for node in ast.walk(parse(source)):
        found += [name for name in imports(node) if name in UNPICKLERS]
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            found.append("torch.load")
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            found += ["trust_remote_code"] * (ast.unparse(node.value) != "False")
    return found


def modules_imported(node: ast.AST, known: Collection[str]) -> list[str]:
    """Modules that this one statement imports: `from a import b` is a.b where that is `known`, else a."""
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        full = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in known else node.module for name in full]
    return imports(node)


def modules_named(source: str) -> list[str]:
    """Our modules and scripts that a string is the name of, as `import_module` and `python -m` take them."""
    found = []
    for text, _ in strings(parse(source)):
        if MODULE.fullmatch(text):
            found.append(text)
        if SCRIPT.fullmatch(text):
            found.append(text.removesuffix(".py").replace("/", "."))
    return found


def floor(module: str) -> int | None:
    parts = module.split(".")
    return FLOORS.get(".".join(parts[:2]), FLOORS.get(parts[0]))


def upward_imports(module: str, source: str, known: Collection[str]) -> list[str]:
    """Modules of a higher floor that this one imports anywhere, or names in a string; of a recipe, other recipes too.

    Of strings, those that name one of `known` or of the recipes': "data.json" is a file. A relative import is found as
    well, since it would not say what it imports.
    """
    own = floor(module)
    assert own is not None, f"{module} stands on no floor"
    highest = own - 1 if own == RECIPE else own
    nodes = [*ast.walk(parse(source))]
    found = [name for node in nodes for name in modules_imported(node, known)]
    found += [name for name in modules_named(source) if name in known or top(name) == "recipes"]
    relative = ["." * node.level for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
    floors = {name: floor(name) for name in found if name != module}
    return relative + sorted(name for name, other in floors.items() if other is not None and other > highest)


def programs(source: str) -> list[str]:
    """First lines of strings that are programs, or templates of one, which import our code."""

    def is_program(text: str) -> bool:
        if PROGRAM.search(text):
            return True
        try:
            return bool(re.search(ROOM, text) and modules_named(dedent(text)))
        except (SyntaxError, ValueError):
            return False

    return [text.strip().partition("\n")[0] for text, _ in strings(parse(source)) if is_program(text)]


def circle(sources: Mapping[str, str]) -> list[str]:
    """A way from a module back to itself by imports of whatever kind, those in functions and for types included."""
    graph = {
        module: {name for node in ast.walk(parse(text)) for name in modules_imported(node, sources)} & {*sources}
        for module, text in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


# The form of a recipe


def unformatted(source: str) -> list[int]:
    """Lines that keep the formatter off; a string that speaks of it does not."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [t.start[0] for t in tokens if t.type == tokenize.COMMENT and UNFORMATTED.search(t.string)]


def is_guarded(source: str) -> bool:
    """Whether the file ends in `if __name__ == "__main__":`: spawned workers execute its body again."""
    last = parse(source).body[-1]
    return isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"


def functions(source: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in parse(source).body if isinstance(node, ast.FunctionDef)}


def length(node: ast.FunctionDef) -> int:
    """Lines from `def` to the end."""
    return (node.end_lineno or 0) - node.lineno + 1


def docstring_faults(source: str, name: str) -> list[str]:
    """What a recipe's docstring lacks: a first line that is a sentence, the run line, brevity."""
    text = ast.get_docstring(parse(source)) or ""
    lines = text.splitlines() or [""]
    faults = {
        "its first line is one sentence, and the next is blank": lines[0].endswith(".") and not "".join(lines[1:2]),
        f"it has the run line: python recipes/{name}.py": re.search(rf"^ +python recipes/{name}\.py", text, re.M),
        "it has 20 lines at most": len(lines) <= 20,
    }
    return [rule for rule, kept in faults.items() if not kept]


def hidden_choices(source: str) -> list[str]:
    """Settings that readers sweep and that a `<method>_config` function does not name."""
    found = []
    for name, function in functions(source).items():
        if name.endswith("_config"):
            named = {node.arg for node in ast.walk(function) if isinstance(node, ast.keyword)}
            found += [f"{name}: {choice}" for choice in CHOICES if choice not in named]
    return found


def is_flag_class(node: ast.ClassDef, flags: Collection[str], *, only_fields: bool = True) -> bool:
    """Whether this is a frozen dataclass of fields, on none but classes named in `flags`; others may derive values."""
    decorated = [ast.unparse(decorator) for decorator in node.decorator_list] == [
        "dataclass(frozen=True, kw_only=True)"
    ]
    kinds = (ast.AnnAssign, ast.Pass) if only_fields else (ast.AnnAssign, ast.Pass, ast.FunctionDef)
    fields = all(isinstance(child, kinds) or is_docstring(child) for child in node.body)
    return decorated and fields and all(ast.unparse(base) in flags for base in node.bases)


def class_faults(source: str) -> list[str]:
    """Classes of a recipe that build a hierarchy: an `Args` on more than flag classes, others on anything of ours."""
    tree = parse(source)
    ours: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and top(node.module) == "recipes":
            ours |= {alias.asname or alias.name: node.module for alias in node.names}
    flags = [name for name, module in ours.items() if module == "recipes.common.args"]
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    own = {node.name for node in classes}
    found = [] if "Args" in own else ["there is no Args"]
    for node in classes:
        bases = {top(ast.unparse(base)) for base in node.bases}
        if not is_flag_class(node, flags) if node.name == "Args" else bases & (own | {*ours}):
            found.append(node.name)
    return found


# What recipes share


def story(source: str) -> list[list[str]]:
    """What a recipe does, its functions' lines, stripped, in stretches that all else parts.

    All else is the frame that each recipe must have (imports at the top, the path line, the guard) and its choices,
    which recipes repeat on purpose: constants, `Args`, `ON_CPU`, `SMOKE` and the trainers' configs. Docstrings,
    comments, blank lines and lone brackets are no lines: words that say the same are the same with a blank line between
    them.
    """
    tree, lines = parse(source), source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    frame: set[int] = set()
    silent: set[int] = set()
    for node in ast.walk(tree):
        if is_docstring(node):
            silent |= {*range(node.lineno, (node.end_lineno or 0) + 1)}
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name.endswith("_config"):
            frame |= {*range(node.lineno, (node.end_lineno or 0) + 1)}
    stretches: list[list[str]] = [[]]
    for number, line in enumerate(lines, 1):
        if number in frame:
            stretches.append([])
        elif number not in silent and re.search(r"\w", line):
            stretches[-1].append(line.strip())
    return [stretch for stretch in stretches if stretch]


def shared_runs(recipes: Mapping[str, str], *, least: int = 8) -> list[tuple[str, str, list[str]]]:
    """Pairs of recipes with the longest run of lines that both have, where it has at least `least`; longest first."""
    stories = {name: story(source) for name, source in recipes.items()}
    found = []
    for one, other in combinations(stories, 2):
        longest: list[str] = []
        for a in stories[one]:
            for b in stories[other]:
                match = SequenceMatcher(None, a, b, autojunk=False).find_longest_match()
                longest = max(longest, a[match.a : match.a + match.size], key=len)
        if len(longest) >= least:
            found.append((one, other, longest))
    return sorted(found, key=lambda pair: -len(pair[2]))


def distinct_lines(recipes: Iterable[str]) -> tuple[int, int]:
    """How many different lines these sources have, and how many in all: stripped, from below the docstring of the file
    on, blank ones left out."""
    counts: Counter[str] = Counter()
    for source in recipes:
        first = parse(source).body[0]
        below = source.splitlines()[(first.end_lineno or 0) if is_docstring(first) else 0 :]
        counts.update(line.strip() for line in below if line.strip())
    return len(counts), counts.total()


# Flags that messages name


@dataclass(eq=False)
class Module:
    """What a module of ours defines, and what it imports: as what, and from where, "" for a module itself."""

    name: str
    modules: "dict[str, Module]"
    definitions: dict[str, ast.Module]
    imported: dict[str, tuple[str, str]]

    def find(self, name: str, attribute: str = "") -> Iterator["Definition"]:
        """What `name` or `name.attribute` stands for in this module; all of one that is named as a whole."""
        module, there = self.imported.get(name, ("", ""))
        if name in self.definitions:
            yield Definition(self, name)
        elif module in self.modules:
            other, wanted = self.modules[module], there or attribute
            found = [*other.find(wanted)] if wanted else []
            yield from found or (Definition(other, own) for own in other.definitions)


@dataclass(frozen=True)
class Definition:
    """A function, a class, a constant: what stands at the top of a module under a name, "" for all that has none."""

    module: Module
    name: str


def read_modules(sources: Mapping[str, str]) -> dict[str, Module]:
    modules: dict[str, Module] = {}
    for module, source in sources.items():
        found: dict[str, list[ast.stmt]] = {}
        imported: dict[str, tuple[str, str]] = {}
        for node in parse(source).body:
            for name in defined(node):
                found.setdefault(name, []).append(node)
        for node in ast.walk(parse(source)):
            if isinstance(node, ast.Import):
                imported |= {alias.asname or top(alias.name): (alias.name, "") for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    imported[alias.asname or alias.name] = (
                        (whole, "") if whole in sources else (node.module, alias.name)
                    )
        definitions = {name: ast.Module(nodes, []) for name, nodes in found.items()}
        modules[module] = Module(module, modules, definitions, imported)
    return modules


def defined(node: ast.stmt) -> list[str]:
    """Names that a statement at the top of a module gives a meaning; "" for one that only does something."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return []
    return [
        child.id for child in ast.walk(node) if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store)
    ] or [""]


@functools.cache
def names(definition: Definition) -> set[Definition]:
    """What a definition names, here or in other modules."""
    nodes = [*ast.walk(definition.module.definitions[definition.name])]
    dotted = {id(node.value): node.attr for node in nodes if isinstance(node, ast.Attribute)}
    words = {(node.id, dotted.get(id(node), "")) for node in nodes if isinstance(node, ast.Name)}
    return {found for name, attribute in words for found in definition.module.find(name, attribute)}


@functools.cache
def tells(definition: Definition, recipe: str) -> set[str]:
    """Flags in what a user of `recipe` may read of a definition: its strings, and what becomes its help.

    A string that is an element of a list and one flag whole is an argument of another program, and so is what follows
    that program's name.
    """
    tree = definition.module.definitions[definition.name]
    texts = [text for text, in_ in strings(tree) if not (isinstance(in_, ast.List) and ARGUMENT.fullmatch(text))]
    own_help = definition.module.name == recipe and definition.name in ("", "Args")
    if own_help or definition.module.name == "recipes.common.args":
        texts += [node.value.value for node in ast.walk(tree) if is_docstring(node)]  # type: ignore[attr-defined]
    own = f"python {recipe.replace('.', '/')}.py"
    return {flag for text in texts for flag in FLAG.findall(OTHER_COMMAND.sub("", text.replace(own, "")))}


def flags_told(recipe: Module) -> dict[str, set[str]]:
    """Flags that a recipe can tell a user to pass, without dashes, with the definitions that name each.

    From all of the recipe, what is named is followed: functions, classes whole, constants, in whatever module.
    """
    waiting = [Definition(recipe, name) for name in recipe.definitions]
    seen = {*waiting}
    told: dict[str, set[str]] = {}
    while waiting:
        definition = waiting.pop()
        for flag in tells(definition, recipe.name):
            told.setdefault(flag, set()).add(f"{definition.module.name}.{definition.name}".removesuffix("."))
        new = names(definition) - seen
        seen |= new
        waiting += new
    return told
