"""Tokens: a text's training and validation halves as ids, made once and cached by content.

Their unigram and bigram entropy, in nats per token, are the marks that a study's losses are held
against: a model that knows only how frequent each token is cannot go below the first, one that
also sees the token before cannot go far below the second.
"""

import atexit
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_dir
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hptransfer._documents import (
    DigestError,
    check_document,
    hash_file,
    read_document,
    seal_document,
)
from hptransfer._messages import describe_error
from hptransfer.errors import DataError
from hptransfer.train._text import DocumentSplit, load_documents, split_documents

Tokens = NDArray[np.integer[Any]]

# Beyond this many training tokens more counts hardly move the estimate (documents are shuffled,
# so the first ones are a fair sample), while sorting them takes memory: 16 bytes a token.
MAX_COUNTED_TOKENS = 2**25

# Discounts are kept off 0 (an unseen bigram would have no probability at all) and off 1.
_DISCOUNT_RANGE = (0.01, 0.99)


def unigram_entropy(tokens: Tokens) -> float:
    """Return the plug-in entropy of the tokens' own distribution.

    −Σ p ln p with p the observed frequencies: the lowest mean loss that any fixed distribution
    reaches on exactly these tokens, and so the mark for a loss measured on them. As an estimate
    of the source's entropy it is low by about (distinct − 1) / (2·count) nats (Miller 1955).

    Parameters
    ----------
    tokens : ndarray of int, shape (N,)
        The validation tokens, N ≥ 1.

    Returns
    -------
    float
        Nats per token.
    """
    counts = np.bincount(tokens).astype(np.float64)
    frequencies = counts[counts > 0] / len(tokens)
    return float(-(frequencies * np.log(frequencies)).sum()) + 0.0  # no -0.0


def bigram_entropy(train: Tokens, val: Tokens, *, vocab_size: int) -> float:
    """Return the held-out cross-entropy of an interpolated Kneser–Ney bigram model.

    The plug-in conditional entropy is of no use here: most bigrams of a short validation text
    occur in it once, so each looks certain given the token before. Instead the model is counted
    on training tokens and scored on validation tokens, which errs upwards, and little:

        p(w | c) = max(n(c,w) − d, 0) / n(c) + d · t(c) / n(c) · q(w)
        q(w) = max(t(·,w) − e, 0) / t + e · s / t / V

    with n counts, t(c) the distinct tokens seen after c, t(·,w) those seen before w, t the
    distinct bigrams, s the tokens seen after any, and discounts d, e = n₁ / (n₁ + 2·n₂) from
    how many bigrams (continuations) occur once and twice. After an unseen c, p = q.
    Formulas: Chen & Goodman 1999, section 2.7; Ney, Essen & Kneser 1994 for the discounts.

    Parameters
    ----------
    train : ndarray of int, shape (N,)
        Training tokens; the first ``MAX_COUNTED_TOKENS`` are counted.
    val : ndarray of int, shape (M,)
        Validation tokens; M − 1 of them are predicted, each from the one before.
    vocab_size : int
        V: every token is below it.

    Returns
    -------
    float
        Nats per token.
    """
    assert min(len(train), len(val)) >= 2, (len(train), len(val))
    bigrams, counts = np.unique(
        _pair(train[:MAX_COUNTED_TOKENS], vocab_size=vocab_size), return_counts=True
    )
    before, after = np.divmod(bigrams, vocab_size)
    backoff_V = _continuations(after, vocab_size=vocab_size)
    context_counts_V = np.bincount(before, weights=counts, minlength=vocab_size)
    context_types_V = np.bincount(before, minlength=vocab_size)
    discount = _discount(counts)

    wanted = _pair(val, vocab_size=vocab_size)
    place = np.minimum(np.searchsorted(bigrams, wanted), len(bigrams) - 1)
    seen = np.where(bigrams[place] == wanted, counts[place] - discount, 0.0)
    context = np.asarray(val[:-1], dtype=np.int64)
    total = np.maximum(context_counts_V[context], 1.0)
    share = np.where(context_counts_V[context] > 0, discount * context_types_V[context] / total, 1)
    return float(-np.log(seen / total + share * backoff_V[val[1:]]).mean())


def _pair(tokens: Tokens, *, vocab_size: int) -> NDArray[np.int64]:
    """Number each bigram (c, w) as c·V + w."""
    wide = np.asarray(tokens, dtype=np.int64)
    return wide[:-1] * vocab_size + wide[1:]


def _continuations(after: NDArray[np.int64], *, vocab_size: int) -> NDArray[np.float64]:
    """Return q(w): the share of distinct bigrams that end in w, with room for unseen tokens."""
    types_V = np.bincount(after, minlength=vocab_size)
    discount = _discount(types_V[types_V > 0])
    room = discount * np.count_nonzero(types_V) / len(after)
    result: NDArray[np.float64] = np.maximum(types_V - discount, 0) / len(after) + room / vocab_size
    return result


def _discount(counts: NDArray[np.int64]) -> float:
    once = int(np.count_nonzero(counts == 1))
    twice = int(np.count_nonzero(counts == 2))
    raw = once / (once + 2 * twice) if once else 0.0
    return float(np.clip(raw, *_DISCOUNT_RANGE))


VAL_FRACTION = 0.05  # share of the text's bytes, by whole documents
END_OF_TEXT = "<|endoftext|>"
CACHE_VARIABLE = "HPTRANSFER_CACHE"

# Part of the cache's key: raise it whenever the same text would give other tokens or other files.
_FORMAT_VERSION = 1
_CHUNK = 1024  # documents encoded at a time, which bounds the memory
_META, _TOKENIZER, _TRAIN, _VAL = "meta.json", "tokenizer.json", "train.npy", "val.npy"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenData:
    """A tokenized text.

    Attributes
    ----------
    train, val : ndarray of uint16 or uint32, shape (num_tokens,)
        Memory-mapped, read-only; every document ends with ``<|endoftext|>``, which has id 0.
        uint32 only where the vocabulary exceeds 65,536.
    vocab_size : int
        The model's vocabulary: the size asked for, so that parameter counts never depend on
        the text.
    num_ids : int
        Ids that the tokenizer has: fewer than ``vocab_size`` where the text is too small to
        find that many merges. The rest are never seen, as a padded vocabulary's are not.
    data_hash : str
        sha256 over the documents, the vocabulary size, the split and the format's version.
    unigram_entropy, bigram_entropy : float
        Of the validation tokens, in nats per token (see :mod:`hptransfer.train._tokens`).
    num_documents : int
        Documents in all, of training and validation.
    directory : Path
        The cache entry; its ``tokenizer.json`` opens with ``tokenizers.Tokenizer.from_file``.
    """

    train: NDArray[np.unsignedinteger[Any]]
    val: NDArray[np.unsignedinteger[Any]]
    vocab_size: int
    num_ids: int
    data_hash: str
    unigram_entropy: float
    bigram_entropy: float
    num_documents: int
    directory: Path


def prepare_tokens(
    text: str,
    *,
    vocab_size: int,
    root: Path | None = None,
) -> TokenData:
    """Tokenize a text, or open the cached result.

    A byte-level BPE is trained on the training documents alone. The result is the same for
    every thread count and every order of the files. A damaged cache entry is made again, and where
    the cache cannot be written the tokens are kept for this process and those that it starts; both
    are logged as a warning.

    Parameters
    ----------
    text : str
        As :func:`hptransfer.train._text.load_documents` takes it.
    vocab_size : int
        Ids, at least 257: the bytes, ``<|endoftext|>`` and the merges.
    root : Path, optional
        What a relative glob starts from.

    Raises
    ------
    DataError
        The text cannot be read, has fewer than two documents, or not even a temporary folder
        takes its tokens.
    """
    split = split_documents(load_documents(text, root=root), val_fraction=VAL_FRACTION)
    settings = {
        "content": split.content_hash,
        "vocab_size": vocab_size,
        "val_fraction": VAL_FRACTION,
        "format": _FORMAT_VERSION,
    }
    data_hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    entry = cache_root() / "tokens" / data_hash
    if (found := _open_entry(entry)) is not None:
        return found
    try:
        return _make_entry(entry, split, vocab_size=vocab_size)
    except OSError as error:
        _log.warning(
            "%s: tokens are not kept for later runs: %s; %s names another folder",
            entry.parent,
            error.strerror or error,
            CACHE_VARIABLE,
        )
    try:
        entry = _make_temporary_cache() / "tokens" / data_hash
        return _make_entry(entry, split, vocab_size=vocab_size)
    except OSError as error:
        raise DataError(f"tokens cannot be written: {describe_error(error)}") from error


def _make_temporary_cache() -> Path:
    """Make a cache for this process and those that it starts, removed when this one ends."""
    folder = Path(tempfile.mkdtemp(prefix="hptransfer-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[CACHE_VARIABLE] = str(folder)
    return folder


def cache_root() -> Path:
    """Return where caches lie: in ``HPTRANSFER_CACHE``, else in the user's cache."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    folder = user_cache_dir("hptransfer")
    # Without a home directory it would lie in a folder called "~" wherever one happens to be.
    return _make_temporary_cache() if folder.startswith("~") else Path(folder)


def _open_entry(entry: Path, *, report: Callable[..., object] = _log.warning) -> TokenData | None:
    """Open a cache entry; None where it is absent, damaged or of an older version."""
    try:
        meta = read_document(entry / _META)
        check_document(meta, context=entry.name)
        for name in (_TRAIN, _VAL, _TOKENIZER):
            if hash_file(entry / name) != meta["sha256"][name]:
                raise DigestError(f"{name}: expected the content that was written, found another")
        train, val = (
            np.load(entry / name, mmap_mode="r", allow_pickle=False) for name in (_TRAIN, _VAL)
        )
        own = {"train": train, "val": val, "directory": entry}
        stored = {each.name: meta[each.name] for each in fields(TokenData) if each.name not in own}
        return TokenData(**own, **stored)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        reason = str(error) if isinstance(error, DigestError) else describe_error(error)
        report("%s: damaged tokens (%s) are made again", entry, reason)
        return None


def _make_entry(entry: Path, split: DocumentSplit, *, vocab_size: int) -> TokenData:
    entry.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{entry.name[:16]}-", dir=entry.parent))
    try:
        made = scratch / "entry"
        made.mkdir()
        _write_entry(made, split, vocab_size=vocab_size, data_hash=entry.name)
        # Another process may publish the same entry first, or be replacing a damaged one.
        for attempt in range(8):
            with suppress(OSError):
                made.rename(entry)
            opened = _open_entry(entry, report=_log.debug)
            if opened is not None:
                return opened
            if made.is_dir():
                with suppress(FileNotFoundError):
                    entry.rename(scratch / f"damaged-{attempt}")
        raise DataError(f"{entry}: the token cache is being changed by something else; try again")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_entry(directory: Path, split: DocumentSplit, *, vocab_size: int, data_hash: str) -> None:
    dtype: np.dtype[np.unsignedinteger[Any]] = np.dtype("u2" if vocab_size <= 2**16 else "u4")
    tokenizer = _train_tokenizer(split.train, vocab_size=vocab_size)
    train = _encode(tokenizer, split.train, dtype=dtype)
    val = _encode(tokenizer, split.val, dtype=dtype)
    # Tokenizers have used threads by now, of which they warn in a child that the process forks
    # later, and do without threads there: the variable says just that, unless the user has set it.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    meta = {
        "data_hash": data_hash,
        "vocab_size": vocab_size,
        "num_ids": tokenizer.get_vocab_size(),
        "num_documents": len(split.train) + len(split.val),
        "unigram_entropy": unigram_entropy(val),
        "bigram_entropy": bigram_entropy(train, val, vocab_size=vocab_size),
    }
    # Every file is proved by its hash when it is opened.
    np.save(directory / _TRAIN, train, allow_pickle=False)
    np.save(directory / _VAL, val, allow_pickle=False)
    (directory / _TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
    hashes = {name: hash_file(directory / name) for name in (_TRAIN, _VAL, _TOKENIZER)}
    sealed = seal_document({**meta, "sha256": hashes}, context=data_hash)
    (directory / _META).write_text(json.dumps(sealed, indent=2), encoding="utf-8")


def _train_tokenizer(documents: Iterable[str], *, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        # All 256 bytes, so that any text at all can be encoded.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    # A document that spells the special token out does not end there.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _encode(
    tokenizer: Tokenizer, documents: Iterable[str], *, dtype: np.dtype[np.unsignedinteger[Any]]
) -> NDArray[np.unsignedinteger[Any]]:
    end = np.array([tokenizer.token_to_id(END_OF_TEXT)], dtype=dtype)
    pieces: list[NDArray[np.unsignedinteger[Any]]] = []
    remaining = iter(documents)
    while chunk := list(islice(remaining, _CHUNK)):
        for encoding in tokenizer.encode_batch(chunk, add_special_tokens=False):
            pieces += [np.array(encoding.ids, dtype=dtype), end]
    return np.concatenate(pieces)
