#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Cleans the SQLite text, splits it, trains the tokenizer and writes token files.

In:  DIR/src/sqlite3-*/      (data.sh unpacks it)
Out: DIR/tokenizer.model     SentencePiece BPE, 4096 pieces, byte fallback
     DIR/{train,heldout}.txt the documents, one after the other
     DIR/{train,heldout}.bin the same as uint16 token ids, every document inside <s> ... </s>

A document is one HTML page or one C file. About 3% of the documents are held out, chosen by a hash of
their name. The same paragraph often occurs in several documents (the manual repeats itself, and C
files are copied between extensions), so a paragraph is kept only where it is seen first. Held-out
documents are read first: what they hold can then not occur in the training text.
"""
import glob
import hashlib
import html.parser
import io
import os
import re
import sys

import numpy as np
import sentencepiece as spm

VOCAB = 4096
HELD_OUT_ONE_IN = 33
PROSE_TIMES = 2  # the manual is a quarter of the text and what people ask about: show it twice
# These pages repeat sentences or links of other pages and say nothing of their own.
SKIP_PAGES = {"requirements.html", "doc_backlink_crossref.html", "doc_keyword_crossref.html",
              "doc_target_crossref.html", "doc_pagelink_crossref.html", "keyword_index.html",
              "sitemap.html", "capi3ref.html", "syntaxdiagrams.html", "search.html"}
SKIP_DIRS = ("/.pc/", "/debian/", "/ext/fts1/", "/ext/fts2/", "/autoconf/", "/art/")
C_DIRS = ("src", "ext", "tool", "mptest", "test")


class Page(html.parser.HTMLParser):
    """Turns a page into plain text: paragraphs apart by blank lines, <pre> kept as it is."""

    DROP = {"script", "style", "svg", "button", "form", "select", "head", "nav"}
    BLOCK = {"p", "div", "h1", "h2", "h3", "h4", "h5", "ul", "ol", "dl", "table", "blockquote", "pre"}
    LINE = {"br", "li", "tr", "dt", "dd"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.out, self.drop, self.pre, self.div = [], 0, 0, []

    def handle_starttag(self, tag, attrs):
        # The site's menus and tables of contents sit in <div class="nosearch">.
        if tag == "div":
            hidden = "nosearch" in dict(attrs).get("class", "") if attrs else False
            self.div.append(hidden)
            self.drop += hidden
        self.drop += tag in self.DROP
        self.pre += tag == "pre"
        if self.drop:
            return
        if tag in self.BLOCK:
            self.out.append("\n\n")
        elif tag in self.LINE:
            self.out.append("\n- " if tag == "li" else "\n")
        elif tag in ("td", "th"):
            self.out.append(" ")

    def handle_endtag(self, tag):
        if tag == "div" and self.div:
            self.drop -= self.div.pop()
        if tag in self.DROP and self.drop:
            self.drop -= 1
        if tag == "pre" and self.pre:
            self.pre -= 1
        if tag in self.BLOCK and not self.drop:
            self.out.append("\n\n")

    def handle_data(self, data):
        if not self.drop:
            self.out.append(data if self.pre else re.sub(r"\s+", " ", data))

    def text(self):
        lines = "".join(self.out).replace("\xa0", " ").split("\n")
        lines = [re.sub(r"^ (?! )", "", line).rstrip() for line in lines]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def read(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read().replace("\r", "").expandtabs(8)


def documents(root):
    """Yields (name, text) of every page and every C file, in a fixed order."""
    for path in sorted(glob.glob(root + "/www/**/*.html", recursive=True)):
        if os.path.basename(path) not in SKIP_PAGES:
            page = Page()
            page.feed(read(path))
            yield os.path.relpath(path, root), page.text()
    for d in C_DIRS:
        for ext in ("c", "h"):
            for path in sorted(glob.glob(f"{root}/{d}/**/*.{ext}", recursive=True)):
                if not any(s in path for s in SKIP_DIRS):
                    text = "\n".join(line.rstrip() for line in read(path).split("\n"))
                    yield os.path.relpath(path, root), text


def held_out(name):
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def deduplicate(text, seen):
    """Drops paragraphs that were seen before, and lines that are data tables rather than text."""
    kept = []
    for par in text.split("\n\n"):
        par = "\n".join(line for line in par.split("\n") if len(line) < 2000)
        key = hashlib.sha256(re.sub(r"\s+", " ", par).strip().encode()).digest()[:12]
        if len(par) >= 60 and key in seen:
            continue
        # A page of numbers teaches nothing: drop paragraphs made mostly of digits and commas.
        if len(par) > 400 and sum(c in "0123456789,x \n{}-" for c in par) > 0.7 * len(par):
            continue
        seen.add(key)
        kept.append(par)
    return "\n\n".join(kept)


def train_tokenizer(text_path, model_path, vocab=VOCAB):
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(read(text_path).split("\n")), model_writer=model, vocab_size=vocab,
        model_type="bpe", byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        add_dummy_prefix=True, remove_extra_whitespaces=False, normalization_rule_name="identity",
        split_digits=True, allow_whitespace_only_pieces=True, character_coverage=0.99999,
        max_sentence_length=16384, num_threads=2, minloglevel=1,
        # Pangu's chat marks. Text can spell the first two; the last two exist only as ids.
        user_defined_symbols=["[unused9]", "[unused10]"],
        control_symbols=["[unused16]", "[unused17]"])
    with open(model_path, "wb") as f:
        f.write(model.getvalue())


def main(out):
    roots = glob.glob(out + "/src/sqlite3-*/")
    if not roots:
        sys.exit(f"data.py: no source package under {out}/src; run data.sh first")
    docs = list(documents(roots[0].rstrip("/")))
    seen, split = set(), {"heldout": [], "train": []}
    for name, text in sorted(docs, key=lambda d: not held_out(d[0])):
        text = deduplicate(text, seen)
        if len(text) > 200:
            split["heldout" if held_out(name) else "train"].append((name, text))
    for part, items in split.items():
        with open(f"{out}/{part}.txt", "w", encoding="utf-8") as f:
            f.write("\n".join(text for _, text in items))
    if not os.path.exists(out + "/tokenizer.model"):
        train_tokenizer(out + "/train.txt", out + "/tokenizer.model")
    sp = spm.SentencePieceProcessor(model_file=out + "/tokenizer.model")
    for part, items in split.items():
        ids = [np.array([1] + sp.encode(text) + [2], dtype=np.uint16) for _, text in items]
        again = [x for x, (name, _) in zip(ids, items) if part == "train" and name.endswith(".html")]
        np.concatenate(ids + again * (PROSE_TIMES - 1)).tofile(f"{out}/{part}.bin")
        size = sum(len(text.encode()) for _, text in items)
        pages = sum(len(text.encode()) for name, text in items if name.endswith(".html"))
        n = sum(map(len, ids))
        print(f"{part}: {len(items)} documents, {size / 1e6:.2f} MB ({pages / 1e6:.2f} MB prose), "
              f"{n} tokens, {size / n:.2f} bytes a token")


if __name__ == "__main__":
    main(sys.argv[1])
