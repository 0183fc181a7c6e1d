# SPDX-License-Identifier: Apache-2.0
"""Checks the source tree against the rules of the house, one function a rule.

    tidy.py ROOT                 every text rule over every file of the tree
    tidy.py --symbols NM LIB...  every global symbol of our libraries carries the prefix moge_
    tidy.py --self-test          every rule rejects its bad example and accepts its good one

A rule is a generator: it is given a path relative to the root and the file's lines, and yields
(line number, sentence).  RULES at the end lists them with their examples.
"""
import os
import re
import subprocess
import sys

COLUMNS_MAX = {".py": 145, ".sh": 110}
COLUMNS_MAX_ELSE = 100
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
CONTRACT_LINES_MAX = 160

SOURCE_SUFFIXES = (".c", ".h", ".py", ".sh", ".mjs", ".proto")
SPDX = "SPDX-License-Identifier: Apache-2.0"
GROUPS = ("engine/base", "engine/kernels", "engine", "draft", "server/schedule", "server/grpc",
          "server/http", "server", "tools", "tests", "bench")

# Whose headers a group may include beside its own and include/moge.  Tests may include anything.
MAY_INCLUDE = {
    "engine/base": (),
    "engine/kernels": ("engine/base",),
    "engine": ("engine/base", "engine/kernels"),
    "draft": (),
    "server/schedule": (),
    "server/grpc": ("server", "server/schedule"),
    "server/http": ("server", "server/schedule"),
    "server": ("server/schedule", "server/grpc", "server/http", "engine/kernels"),
    "tools": ("engine/kernels", "engine"),
    "bench": ("engine/kernels", "engine"),
}

# A foreign header, and the only files that may see it.
FOREIGN = (
    (r"cblas\.h", r"engine/gemm\.c"),
    (r".*\.pb-c\.h|protobuf-c/.*", r"server/grpc/codec[a-z_]*\.[ch]|tools/client[a-z_]*\.c"),
    (r"grpc/.*", r"server/grpc/.*|tools/client\.c"),
    (r".*intrin\.h", r"engine/kernels/[a-z0-9_]+_(avx2|avx512|vnni)[a-z0-9_]*\.[ch]|"
                     r"engine/kernels/body_[a-z0-9_]+\.h"),
    (r"cpuid\.h", r"engine/kernels/dispatch\.c"),
    (r"event2/http.*", r"server/http/.*"),
    (r"event2/.*", r"server/.*"),
    (r"systemd/.*", r"server/.*"),
    (r"ini\.h", r"server/config[a-z_]*\.c|tools/.*"),
)
ISA_FILE = re.compile(r"engine/kernels/[a-z0-9_]+_(avx2|avx512|vnni)\.c$")
ISA_MAY_INCLUDE = ("engine/kernels/kernels.h", "stdint.h", "stddef.h", "immintrin.h")


def is_c(path):
    return path.endswith((".c", ".h"))


def is_source(path):
    named_scripts = path.startswith("scripts/") and path != "scripts/packages"
    return path.endswith(SOURCE_SUFFIXES) or named_scripts or path == ".ci/run"


def group_of(path):
    """The longest group that is a directory prefix of the path, or ''."""
    return next((g for g in sorted(GROUPS, key=len, reverse=True) if path.startswith(g + "/")), "")


def strip_c(lines):
    """The code with comments, string and character literals blanked; lines and columns stay."""
    pattern = r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
    blank = lambda m: re.sub(r"[^\n]", " ", m.group(0))
    return re.sub(pattern, blank, "\n".join(lines), flags=re.S).split("\n")


def functions_of(lines):
    """(name, first line, last line) of every function defined in C code."""
    depth, head, head_line, open_line, name = 0, "", 0, 0, None
    for number, line in enumerate(strip_c(lines), 1):
        if line.lstrip().startswith("#"):
            continue
        for char in line:
            if char == "{":
                if depth == 0:
                    match = re.search(r"([A-Za-z_]\w*)\s*\(", head)
                    is_function = match and "=" not in head.split("(")[0]
                    name, open_line = (match.group(1), head_line) if is_function else (None, 0)
                depth += 1
            elif char == "}":
                depth -= 1
                if depth == 0:
                    if name:
                        yield name, open_line, number
                    head = ""
            elif depth == 0:
                if char == ";":
                    head = ""
                elif char.strip() or head:
                    head_line = number if not head else head_line
                    head += char
        if depth == 0 and head:
            head += " "


def includes_of(lines):
    for number, line in enumerate(lines, 1):
        match = re.match(r'\s*#\s*include\s+(["<])([^">]+)[">]', line)
        if match:
            yield number, match.group(1) == '"', match.group(2)


# ---- layout -----------------------------------------------------------------------------------


def rule_spdx(path, lines):
    wanted = is_source(path) or path.endswith((".cmake", "CMakeLists.txt"))
    if not wanted and not (lines and lines[0].startswith("#!")):
        return
    first = lines[1:2] if lines and lines[0].startswith("#!") else lines[:1]
    if not first or SPDX not in first[0]:
        yield 1, f"the first line is not '{SPDX}'"


def rule_line_length(path, lines):
    limit = COLUMNS_MAX.get(os.path.splitext(path)[1], COLUMNS_MAX_ELSE)
    if is_source(path):
        for number, line in enumerate(lines, 1):
            if len(line) > limit:
                yield number, f"{len(line)} columns, at most {limit}"


def rule_file_length(path, lines):
    limit = CONTRACT_LINES_MAX if path.startswith("include/moge/") else FILE_LINES_MAX
    if is_source(path) and len(lines) > limit:
        yield len(lines), f"{len(lines)} lines, at most {limit}"


def rule_function_length(path, lines):
    if is_c(path):
        for name, first, last in functions_of(lines):
            if last - first + 1 > FUNCTION_LINES_MAX:
                yield first, f"{name} has {last - first + 1} lines, at most {FUNCTION_LINES_MAX}"


def rule_file_name(path, lines):
    stem = os.path.basename(path).split(".")[0]
    if is_source(path) and set(re.split(r"[_-]", stem)) & {
            "util", "utils", "common", "misc", "helper", "helpers", "impl"}:
        yield 1, "the name does not say what the file is for"


def rule_white_space(path, lines):
    if not is_source(path):
        return
    for number, line in enumerate(lines, 1):
        if line != line.rstrip():
            yield number, "white space at the end of the line"
        if "\t" in line:
            yield number, "a tab"


# ---- includes ---------------------------------------------------------------------------------


def rule_layers(path, lines):
    group = group_of(path)
    if not is_c(path) or group in ("", "tests"):
        return
    allowed = (group,) + MAY_INCLUDE[group]
    for number, quoted, name in includes_of(lines):
        if not quoted or name.startswith("moge/") or name.endswith(".pb-c.h"):
            continue
        if name.endswith(".c"):
            yield number, f"includes the source file {name}"
        elif group_of(name) not in allowed:
            yield number, f"{group} may not include {name}"


def rule_contracts(path, lines):
    if path.startswith("include/moge/"):
        for number, quoted, name in includes_of(lines):
            if quoted and not name.startswith("moge/"):
                yield number, f"a contract header includes {name}"


def rule_foreign(path, lines):
    if not is_c(path) or group_of(path) == "tests":
        return
    for number, _, name in includes_of(lines):
        for header, place in FOREIGN:
            if re.fullmatch(header, name):
                if not re.fullmatch(place, path):
                    yield number, f"only {place} may include <{name}>"
                break


def rule_isa(path, lines):
    """No foreign inline function may be compiled with wider instructions than its callers have."""
    if ISA_FILE.match(path):
        for number, _, name in includes_of(lines):
            body = name.startswith("engine/kernels/") and name != "engine/kernels/kernels.h"
            if name not in ISA_MAY_INCLUDE and not body:
                yield number, f"a file compiled for one instruction set includes {name}"


# ---- words ------------------------------------------------------------------------------------


def rule_static_names(path, lines):
    if path.endswith(".c"):
        for number, line in enumerate(strip_c(lines), 1):
            if re.match(r"static\b[^=(]*\bmoge_\w+\s*\(", line):
                yield number, "a static function carries the prefix moge_"


def rule_library_manners(path, lines):
    """Libraries neither end the process, nor print, nor read the environment."""
    library = path.startswith(("engine/", "draft/")) and path.endswith(".c")
    if not library or path in ("engine/base/err.c", "engine/base/log.c"):
        return
    for number, line in enumerate(strip_c(lines), 1):
        match = re.search(r"\b(exit|_exit|abort|getenv|printf|puts|perror)\s*\(", line)
        if match:
            yield number, f"a library calls {match.group(1)}"
        if re.search(r"\bMOGE_LOG_(ERROR|WARN|INFO)\b", line):
            yield number, "a library logs above debug"


def rule_unsafe_calls(path, lines):
    if is_c(path) and group_of(path) != "tests":
        for number, line in enumerate(strip_c(lines), 1):
            match = re.search(
                r"\b(strcpy|strcat|sprintf|vsprintf|gets|atoi|atol|atof|strtok|alloca)\s*\(", line)
            if match:
                yield number, f"calls {match.group(1)}"


def rule_todo(path, lines):
    if is_source(path):
        for number, line in enumerate(lines, 1):
            if re.search(r"\b(TO" r"DO(?!\(#\d+\))|FIX" r"ME)\b", line):
                yield number, "a note to do something names no issue"


def rule_machine_paths(path, lines):
    pattern = re.compile(r"(?<![\w.}*-])/(work|home|root|Users|tmp/moged?)\b")
    if path.endswith(".txt") and not path.endswith("CMakeLists.txt"):
        return  # Held-out text is data: what it says is not ours.
    for number, line in enumerate(lines, 1):
        if pattern.search(line) and path != "tests/tidy/tidy.py":
            yield number, "a path of one machine"


def rule_registry(path, lines):
    if path.endswith("package-lock.json"):
        for number, line in enumerate(lines, 1):
            if '"resol' 'ved"' in line:
                yield number, "the lock file names a package host"


LONG_FUNCTION = ["int f(int a,", "      int b) {"] + ["    a += b;"] * 68 + ["}"]
SHORT_FUNCTION = ["int f(int a,", "      int b) {"] + ["    a += b;"] * 67 + ["}"]

# rule, (path, bad lines), (path, good lines)
RULES = (
    (rule_spdx, ("a.c", ["int a;"]), ("a.py", ["#!/usr/bin/python3", "# " + SPDX])),
    (rule_line_length, ("a.c", ["x" * 101]), ("a.c", ["x" * 100])),
    (rule_file_length, ("include/moge/a.h", [""] * 161), ("engine/a.c", [""] * 600)),
    (rule_function_length, ("a.c", LONG_FUNCTION), ("a.c", SHORT_FUNCTION)),
    (rule_file_name, ("engine/kv_utils.c", []), ("engine/kv.c", [])),
    (rule_white_space, ("a.c", ["int a; "]), ("a.c", ["int a;"])),
    (rule_layers, ("engine/kernels/a.c", ['#include "engine/gemm.h"']),
     ("engine/a.c", ['#include "engine/kernels/kernels.h"', '#include "moge/kv.h"'])),
    (rule_contracts, ("include/moge/a.h", ['#include "engine/gemm.h"']),
     ("include/moge/a.h", ['#include "moge/err.h"'])),
    (rule_foreign, ("engine/a.c", ["#include <cblas.h>"]),
     ("engine/gemm.c", ["#include <cblas.h>"])),
    (rule_isa, ("engine/kernels/dot_avx2.c", ["#include <string.h>"]),
     ("engine/kernels/dot_avx2.c", ["#include <immintrin.h>"])),
    (rule_static_names, ("a.c", ["static int moge_f(void) {"]), ("a.c", ["int moge_f(void) {"])),
    (rule_library_manners, ("engine/a.c", ["    exit(1);"]), ("engine/a.c", ["/* exit(1) */"])),
    (rule_unsafe_calls, ("a.c", ["    strcpy(a, b);"]), ("a.c", ['    f("strcpy(a, b)");'])),
    (rule_todo, ("a.c", ["/* TO" "DO: later */"]), ("a.c", ["/* TO" "DO(#12): later */"])),
    (rule_machine_paths, ("a.md", ["see /wo" "rk/x"]), ("a.md", ["see network/work/x"])),
    (rule_registry, ("package-lock.json", ['  "resol' 'ved": "https://x"']),
     ("package-lock.json", ['  "integrity": "x"'])),
)


def tree(root):
    """Every file that git would keep; without git, every file outside the build directories."""
    command = ["git", "-c", "safe.directory=*", "-C", root, "ls-files", "-z", "--cached", "--others",
               "--exclude-standard"]
    listing = subprocess.run(command, capture_output=True)
    if listing.returncode == 0:
        names = os.fsdecode(listing.stdout).split("\0")
        return sorted({n for n in names if n and os.path.isfile(os.path.join(root, n))})
    names = []
    for directory, inner, files in os.walk(root):
        inner[:] = [d for d in inner if d not in (".git", "build", "node_modules", "__pycache__")]
        names += [os.path.relpath(os.path.join(directory, f), root) for f in files]
    return sorted(names)


def check_tree(root):
    names, n_problems = tree(root), 0
    for name in names:
        with open(os.path.join(root, name), "rb") as file:
            data = file.read()
        if b"\0" in data:
            continue
        lines = data.decode("utf-8", "replace").split("\n")
        if lines and lines[-1] == "":
            lines.pop()
        for rule, _, _ in RULES:
            for number, sentence in rule(name, lines):
                print(f"{name}:{number}: {sentence} [{rule.__name__[5:]}]")
                n_problems += 1
    n_sources = sum(is_source(n) for n in names)
    print(f"{len(names)} files, {n_sources} of them sources: {n_problems} violations")
    return 1 if n_problems or n_sources < 10 else 0


def check_symbols(nm, libraries):
    """What is not static carries the prefix, also inside a module; an ISA file exports one name."""
    n_problems = n_symbols = 0
    for library in libraries:
        listing = subprocess.run([nm, "--defined-only", "-g", "-P", "-A", library], check=True,
                                 capture_output=True, text=True).stdout
        exported = {}
        for line in listing.splitlines():
            where, symbol = line.rsplit(":", 1)[0], line.rsplit(":", 1)[1].split()[0]
            if symbol.startswith(("__odr_asan", "__asan", "__gcov", "__llvm", "__prof")):
                continue
            member = re.search(r"\[(.*)\]", where)
            exported.setdefault(member.group(1) if member else where, []).append(symbol)
            n_symbols += 1
            if not symbol.startswith("moge_"):
                print(f"{where}: the global symbol {symbol} lacks the prefix moge_")
                n_problems += 1
        for member, symbols in exported.items():
            isa = re.match(r"(\w+)_(avx2|avx512|vnni)\.c\.o$", member)
            if isa and symbols != [f"moge_{isa.group(1)}_init_{isa.group(2)}"]:
                print(f"{member}: exports {', '.join(symbols)}, not its init function alone")
                n_problems += 1
    print(f"{len(libraries)} libraries, {n_symbols} global symbols: {n_problems} violations")
    return 1 if n_problems or not n_symbols else 0


def self_test():
    for rule, bad, good in RULES:
        if not list(rule(*bad)):
            sys.exit(f"{rule.__name__} accepts its bad example")
        if list(rule(*good)):
            sys.exit(f"{rule.__name__} rejects its good example: {list(rule(*good))}")
    print(f"{len(RULES)} rules reject and accept as they should")


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        self_test()
    elif sys.argv[1:2] == ["--symbols"] and len(sys.argv) > 3:
        sys.exit(check_symbols(sys.argv[2], sys.argv[3:]))
    elif len(sys.argv) == 2:
        sys.exit(check_tree(sys.argv[1]))
    else:
        sys.exit(__doc__)
