"""Holds the include order of the folders, and each third-party library in its folder's .cpp files.

    layering.py REPOSITORY            exit 1, one line an offence, when something is included from where it may not be
    layering.py --self-test           proves that offences are seen
"""

import pathlib
import re
import sys
import tempfile

# A folder may include itself and what is listed here.
LAYERS = {
    "dist": [],
    "data": ["dist"],
    "models": ["dist"],
    "trainer": ["dist", "data", "models"],
    "launch": ["dist", "data", "models", "trainer"],
    "tests": ["dist", "data", "models", "trainer", "launch"],
}

# Third-party headers by pattern: the folders that may include them, and whether their headers may too.
THIRD_PARTY = [
    (r"mpi\.h", ["dist", "tests"], False),  # tests: what stands between a rank and MPI to hurt it
    (r"nccl\.h|cuda.*", ["dist"], False),
    (r"spdlog/.*", ["dist"], False),
    (r"openssl/.*", ["dist"], False),
    (r"hdf5.*|H5.*", ["data"], False),
    (r"vips/.*", ["data"], False),
    (r"xxhash\.h", ["data"], False),
    (r"arrow/.*|parquet/.*", ["data"], False),
    (r"re2/.*", ["models"], False),
    (r"unicode/.*", ["models"], False),
    (r"zlib\.h", ["models"], False),
    (r"toml\+\+/.*|toml\.hpp", ["trainer"], False),
    (r"google/protobuf/.*|.*\.pb\.h", ["trainer"], False),
    (r"CLI/.*", ["launch"], True),  # every subcommand adds itself to one CLI::App
    (r"nlohmann/.*", list(LAYERS), False),
    (r"gtest/.*|gmock/.*", ["tests"], True),
    (r"ATen/cuda/.*|c10/cuda/.*", ["dist", "tests"], False),
    (r"ATen/.*|c10/.*|torch/.*|fmt/.*", list(LAYERS), True),
]

# 27 s of compile time for each file that has it.
FORBIDDEN = {"torch/torch.h": "include the narrow headers instead"}

INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')


def is_third_party(name):
    """Not the C, C++ or POSIX headers: those have no pattern here, and nothing else is linked."""
    return next((rule for rule in THIRD_PARTY if re.fullmatch(rule[0], name)), None)


def offences_in(folder, path, text):
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        quote, name = match.groups()
        where = f"{path}:{number}: "
        if name in FORBIDDEN:
            yield f"{where}'{name}': {FORBIDDEN[name]}"
        rule = is_third_party(name)
        if rule:
            _, folders, in_headers = rule
            if folder not in folders:
                yield f"{where}{folder} includes '{name}', which belongs to {', '.join(folders)}"
            elif path.suffix == ".h" and not in_headers:
                yield f"{where}'{name}' may only be included in .cpp files"
        elif quote == '"':
            other = name.split("/")[0]
            if "/" not in name or other not in LAYERS:
                yield f"{where}'{name}': includes start at the root of the repository, with one of {', '.join(LAYERS)}"
            elif other != folder and other not in LAYERS[folder]:
                allowed = ", ".join([folder] + LAYERS[folder])
                yield f"{where}{folder} includes '{name}', but may only include {allowed}"
        elif "/" in name and not name.startswith(("sys/", "linux/", "net/", "netinet/", "arpa/")):
            yield f"{where}'{name}': a library that no folder owns; give it to one in tests/layering.py"


def offences(root):
    seen = 0
    for folder in LAYERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".h", ".cpp"):
                seen += 1
                yield from offences_in(folder, path.relative_to(root), path.read_text(encoding="utf-8"))
    if seen == 0:
        yield f"'{root}' has no sources"


def self_test():
    cases = {
        ("dist/a.cpp", '#include "data/pack.h"'): True,
        ("data/a.cpp", '#include "models/lora.h"'): True,
        ("models/a.h", '#include "data/image.h"'): True,
        ("models/a.h", '#include "trainer/recipe.h"'): True,
        ("trainer/a.cpp", '#include "launch/commands.h"'): True,
        ("trainer/a.cpp", '# include "tests/support/temp_dir.h"'): True,
        ("trainer/a.cpp", "#include <mpi.h>"): True,
        ("data/a.h", "#include <hdf5.h>"): True,
        ("trainer/a.cpp", "#include <c10/cuda/CUDAStream.h>"): True,
        ("dist/cuda/a.h", "#include <nccl.h>"): True,
        ("dist/cuda/a.cpp", "#include <nccl.h>\n#include <c10/cuda/CUDAStream.h>"): False,
        ("data/parquet_library.h", "#include <arrow/api.h>"): True,
        ("data/parquet/a.cpp", "#include <arrow/api.h>\n#include <parquet/arrow/reader.h>"): False,
        ("launch/a.cpp", "#include <toml++/toml.h>"): True,
        ("launch/a.h", "#include <nlohmann/json.hpp>"): True,
        ("data/a.cpp", "#include <boost/any.hpp>"): True,
        ("data/a.cpp", '#include "image.h"'): True,
        ("models/a.h", "#include <torch/torch.h>"): True,
        ("data/a.cpp", "#include <hdf5.h>"): False,
        ("data/a.h", '#include "dist/error.h"'): False,
        ("trainer/a.cpp", '#include "models/lora.h"\n#include "data/pack.h"\n#include <sys/stat.h>\n#include <vector>'): False,
        ("launch/a.cpp", "#include <nlohmann/json.hpp>\n#include <CLI/CLI.hpp>"): False,
        ("models/a.h", "#include <torch/nn/module.h>\n#include <fmt/core.h>"): False,
    }
    wrong = 0
    for (name, text), expected in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / name
            path.parent.mkdir(parents=True)
            path.write_text(text + "\n", encoding="utf-8")
            if bool(list(offences(pathlib.Path(folder)))) != expected:
                print(f"self-test: {name} with {text!r}: expected {'an offence' if expected else 'none'}")
                wrong += 1
    return wrong


def main():
    if sys.argv[1:] == ["--self-test"]:
        return 1 if self_test() else 0
    found = list(offences(pathlib.Path(sys.argv[1])))
    print("\n".join(found) if found else "every include is in order")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
