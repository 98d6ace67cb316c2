"""CLIPTokenizer against transformers' CLIPTokenizer: the same ids for the same text, for every form of tokenizer folder."""

import gzip
import json
import os
import random
import struct
import subprocess
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "tokenizer_probe")
ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = os.environ.get("LORASHARD_CLIP_VOCABULARY", ROOT / ".venv/share/lorashard/bpe_simple_vocab_16e6.txt.gz")
LONG = os.environ.get("LORASHARD_LONG_TESTS") == "1"
START, END = "<|startoftext|>", "<|endoftext|>"


def vocabulary_and_merges():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    merges = gzip.open(VOCABULARY).read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    tokens = symbols + [s + "</w>" for s in symbols] + [m.replace(" ", "") for m in merges] + [START, END]
    return {token: i for i, token in enumerate(tokens)}, merges


def added(content, normalized=True, **flags):
    return {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False, **flags}


BASE = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
NAMED = {name: {"__type": "AddedToken", **added(content)} for name, content in [("bos_token", START), ("eos_token", END), ("unk_token", END)]}
MAP = {"bos_token": added(START), "eos_token": added(END), "unk_token": added(END)}
# The extra files of the folders that are in use. model_max_length as they have it.
FOLDERS = {
    "bare": {},
    "sd15": {"tokenizer_config.json": {**BASE, **NAMED, "pad_token": END}, "special_tokens_map.json": {**MAP, "pad_token": END}},
    "sd21": {"tokenizer_config.json": {**BASE, **NAMED, "pad_token": END}, "special_tokens_map.json": {**MAP, "pad_token": "!"}},
    "sdxl_2": {
        "tokenizer_config.json": {
            **BASE, "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": "!",
            "added_tokens_decoder": {"0": added("!", False, special=True), "49406": added(START, special=True), "49407": added(END, special=True)},
        },
        "special_tokens_map.json": {**MAP, "pad_token": END},
    },
    "textual_inversion": {
        "tokenizer_config.json": {**BASE, **NAMED, "pad_token": END},
        "special_tokens_map.json": {**MAP, "pad_token": END},
        "added_tokens.json": {"<cat-toy>": 49408, "<Cat Toy>": 49409, "midjourney style": 49410},
    },
    "single_word": {
        "tokenizer_config.json": {
            **BASE, "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END, "extra_special_tokens": ["<extra>", "sks"],
            "added_tokens_decoder": {"49406": added(START, False, special=True), "49407": added(END, False, special=True),
                                     "49408": added("Dog", True, single_word=True), "49409": added("dogs", False, lstrip=True, rstrip=True)},
        },
    },
}  # fmt: skip


def write_folder(folder, files, **changes):
    folder.mkdir(parents=True)
    vocabulary, merges = vocabulary_and_merges()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    for name, content in files.items():
        if name == "tokenizer_config.json":
            content = {**content, **changes}
        (folder / name).write_text(json.dumps(content))
    return folder


def legacy_merges(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every folder of FOLDERS as it is, as transformers saves it again, and that with merges in the older form."""
    root = tmp_path_factory.mktemp("tokenizers")
    made = {}
    for name, files in FOLDERS.items():
        made[name] = write_folder(root / name, files)
        for form in ("saved", "saved_string_merges"):
            made[f"{name}-{form}"] = root / f"{name}-{form}"
            CLIPTokenizer.from_pretrained(made[name]).save_pretrained(made[f"{name}-{form}"])
        legacy_merges(made[f"{name}-saved_string_merges"])
    return made


def probe(folder, texts, *options):
    data = b"".join(struct.pack("<I", len(t)) + t for t in (t if isinstance(t, bytes) else t.encode() for t in texts))
    output = subprocess.run([PROBE, folder, *options], input=data, capture_output=True, check=True).stdout
    numbers = struct.unpack(f"<{len(output) // 4}I", output)
    ids, at = [], 0
    while at < len(numbers):
        ids.append(list(numbers[at + 1 : at + 1 + numbers[at]]))
        at += 1 + numbers[at]
    assert len(ids) == len(texts)
    return ids


WORDS = (
    "a photo of an astronaut riding horse on mars masterpiece best quality 4k 8k it's don't we'll I'd you're they've I'm DON'T dog dogs Dog "
    "unbelievably antidisestablishmentarianism naïve café Straße ΟΔΥΣΣΕΥΣ İstanbul ǅ ﬁ ½ Ⅷ ٣ 一二三 日本語 한국어 русский हिन्दी ไทย עברית العربية "
    "sks <cat-toy> <Cat Toy> midjourney style <extra> 1girl, (masterpiece:1.2) -- !!! ... :) ;-) #tag @user http://x.y/z?q=1&r=2 '' ''s 's' "
    "😀 👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 ❤️ e\u0301 a\u0308\u0323 \u1e9b\u0323 \ufb01 \u212b ſ 's 'LL 'Ve 'ſ <| |> <|startoftext|> <|endoftext|> <|StartOfText|> <|ENDOFTEXT|>"
).split(" ")
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\u0085", "\u1680", "\u200b", "\ufeff", "\u180e", "\x1c", ""]
PLANES = [(0x20, 0x7E), (0x0, 0x2FF), (0x300, 0x36F), (0x370, 0x7FF), (0x800, 0x1FFF), (0x2000, 0x2FFF), (0x3000, 0xD7FF), (0xE000, 0xFFFF),
          (0x10000, 0x11FFF), (0x12000, 0x1FFFF), (0x1F000, 0x1FAFF), (0x20000, 0x323AF), (0xE0000, 0xE01EF), (0xF0000, 0x10FFFF)]  # fmt: skip


def one_text(generator):
    kind = generator.randrange(8)
    if kind == 0:
        return "".join(chr(generator.randint(0x20, 0x7E)) for _ in range(generator.randint(0, 80)))
    if kind in (1, 2):
        spans = [generator.choice(PLANES) for _ in range(generator.randint(1, 3))]
        return "".join(chr(generator.randint(*generator.choice(spans))) for _ in range(generator.randint(0, 40)))
    if kind in (3, 4, 5):
        words = [generator.choice(WORDS) for _ in range(generator.randint(0, 30))]
        return "".join(w if generator.random() < 0.8 else w.upper() for word in words for w in (word, generator.choice(SPACES)))
    if kind == 6:
        marks = [chr(generator.randint(0x300, 0x36F)) for _ in range(generator.randint(1, 6))]
        return "".join(generator.choice("aeiouAÅöqΩя") + "".join(marks) + generator.choice(SPACES) for _ in range(8))
    return "".join(generator.choice("0123456789'\"!?<|>stremvld STREMVLD\x00\x01\x7f\x9f") for _ in range(generator.randint(0, 60)))


def texts(count, seed=1337):
    generator = random.Random(seed)
    made = ["", " ", "\n\t ", "\x00", "a" * 3000, "ab c" * 2000, "é" * 500, "1234567890" * 30, "!" * 1000, "😀" * 300]
    return made + [one_text(generator) for _ in range(count - len(made))]


def expected(folder, strings, **options):
    return CLIPTokenizer.from_pretrained(folder)(strings, truncation=True, max_length=77, **options)["input_ids"]


@pytest.mark.parametrize("form", ["sd15", "sd15-saved"])
def test_ten_thousand_texts_have_the_same_ids(folders, form):
    strings = texts(200_000 if LONG else 10_000)
    got, want = probe(folders[form], strings), expected(folders[form], strings)
    different = [(s, g, w) for s, g, w in zip(strings, got, want) if g != w]
    print(f"{form}: {len(strings)} texts, {len(different)} differ")
    assert not different, different[:3]


@pytest.mark.parametrize("form", ["", "-saved", "-saved_string_merges"])
@pytest.mark.parametrize("name", FOLDERS)
def test_every_form_of_folder_gives_the_same_ids_and_padding(folders, name, form):
    folder = folders[name + form]
    strings = texts(5000 if LONG else 300, seed=len(name))
    assert probe(folder, strings) == expected(folder, strings)
    assert probe(folder, strings[:100], "--padded") == expected(folder, strings[:100], padding="max_length")


def test_texts_are_the_same_to_their_end(tmp_path):
    """Nothing truncated: the 77 ids of a prompt hide what comes later."""
    folder = write_folder(tmp_path / "long", FOLDERS["sd15"], model_max_length=1_000_000)
    strings = texts(2000, seed=5) + ["".join(texts(1000, seed=6))]
    assert probe(folder, strings) == CLIPTokenizer.from_pretrained(folder)(strings)["input_ids"]


def test_every_character_alone_and_after_a_letter_with_a_mark(tmp_path):
    folder = write_folder(tmp_path / "long", FOLDERS["sd15"], model_max_length=1_000_000)
    # From plane 2 on there are few kinds of characters: every 16th page of 256 will do.
    pages = [page for page in range(0, 0x110000, 256) if not 0xD800 <= page < 0xE000 and (page < 0x20000 or page % 4096 == 0 or LONG)]
    strings = ["".join(f"x{c}y \u0301{c}\u0345 " for c in map(chr, range(page, page + 256))) for page in pages]
    got, want = probe(folder, strings), CLIPTokenizer.from_pretrained(folder)(strings)["input_ids"]
    different = [hex(page) for page, g, w in zip(pages, got, want) if g != w]
    print(f"{256 * len(pages)} characters, pages that differ: {different}")
    assert not different


def test_bytes_that_are_not_utf8_stand_for_the_replacement_character(folders):
    broken = [b"\xff", b"a\xc3", b"\xe2\x82z", b"\xed\xa0\x80", b"ok \xf0\x9f\x98", bytes(range(256))]
    strings = [text.decode("utf-8", "replace") for text in broken]
    got, want = probe(folders["sd15"], broken), expected(folders["sd15"], strings)
    # How many U+FFFD a broken sequence is worth differs between decoders; one or more there must be.
    assert got[0] == want[0] and got[1] == want[1] and got[2] == want[2]
    assert all(ids[0] == 49406 and ids[-1] == 49407 and len(ids) > 2 for ids in got)
