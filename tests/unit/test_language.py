"""explain_text: a model, its tokenizer and a text in; tokens with relevance out, readable in any theme."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import saliency_lrp
from saliency_lrp import RelevancePropagator, explain_text
from saliency_lrp.errors import InputError
from saliency_lrp.text import show_text
from tests.helpers.torchvision_cpu import import_torchvision

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
import_torchvision()

TEXT = "the film was not good"
WORDS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *"the a film book was is not very good bad <b>".split()]


def word_level(special: bool = False):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: k for k, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if special:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return made


def fast(special: bool = False):
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_level(special), unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]"
    )


def byte_level():
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator([TEXT, "a book is very bad"] * 5, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made)


def wide(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10 if p.dim() > 1 else 1)
    return model.eval()


def llama(size=16):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    return wide(transformers.LlamaForCausalLM(config))


def gpt2(size=16):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1
    )
    return wide(transformers.GPT2LMHeadModel(config))


def bert(kind="SequenceClassification"):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        id2label={0: "bad", 1: "fine", 2: "good"}, label2id={"bad": 0, "fine": 1, "good": 2},
    )  # fmt: skip
    return wide(getattr(transformers, f"BertFor{kind}")(config))


class Bag(nn.Module):
    """Scores are sums of what each word weighs: the weights are the relevance."""

    class_names = ("no", "yes")

    def __init__(self):
        super().__init__()
        self.weights = nn.Embedding(len(WORDS), 2)

    def forward(self, ids):
        return self.weights(ids).sum(1)


@pytest.mark.parametrize("make", [word_level, fast, lambda: lambda text: [WORDS.index(w) for w in text.split()]])
def test_a_bag_of_words_is_its_weights(make):
    model = Bag()
    ids = torch.tensor([WORDS.index(w) for w in TEXT.split()])
    found = explain_text(model, make(), TEXT, 1)
    torch.testing.assert_close(found.relevance, model.weights.weight[ids, 1].detach())
    assert found.relevance.shape == (5,) and found.targets == ["yes"]
    assert found.tokens == (TEXT.split() if hasattr(make(), "encode") else [str(i) for i in ids.tolist()])
    both = explain_text(model, make(), TEXT, ["no", "yes", None, -1])
    torch.testing.assert_close(both.relevance[:2], model.weights.weight[ids].T.detach())
    assert both.relevance.shape == (4, 5) and both.targets[3] == "yes"
    torch.testing.assert_close(both.probabilities[:2], model(ids[None]).softmax(1)[0].tolist())


@pytest.mark.parametrize("make", [llama, gpt2])
def test_causal_language_models(make):
    model, tokenizer = make(), fast()
    batch = tokenizer(TEXT, return_tensors="pt")
    logits = model(input_ids=batch["input_ids"]).logits[0]
    found = explain_text(model, tokenizer, TEXT)
    assert found.tokens == TEXT.split() and found.targets == [WORDS[int(logits[-1].argmax())]]
    assert found.probabilities == pytest.approx([float(logits[-1].softmax(0).max())], rel=1e-5)
    trace = RelevancePropagator(model, "attnlrp").trace(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    )
    torch.testing.assert_close(found.relevance, trace.relevance()[0], rtol=1e-4, atol=1e-6)
    several = explain_text(model, tokenizer, TEXT, ["book", WORDS.index("bad"), (1, "was")])
    assert several.targets == ["book", "bad", "was (after film)"]
    for row, target in zip(several.relevance, (WORDS.index("book"), WORDS.index("bad"), (1, 9)), strict=True):
        torch.testing.assert_close(row, trace.relevance(target)[0], rtol=1e-4, atol=1e-6)
    assert not several.relevance[2, 2:].any()  # words that come later
    by_parts = explain_text(model, tokenizer, TEXT, composite="cp_lrp")
    assert not torch.allclose(by_parts.relevance, found.relevance)


def test_byte_level_tokens_and_targets_as_they_are_written():
    tokenizer = byte_level()
    model = gpt2(len(tokenizer))
    found = explain_text(model, tokenizer, TEXT, " good")
    assert found.tokens == tokenizer.convert_ids_to_tokens(tokenizer(TEXT)["input_ids"])
    assert found.targets == ["good"] and "Ġ" not in found._repr_html_() and "Ġ" not in repr(found)
    with pytest.raises(InputError, match="tokens .* and a map is of one"):
        explain_text(model, tokenizer, TEXT, " good book")


@pytest.mark.parametrize("target", ["good", 2, -1])
def test_classifiers_of_texts(target):
    model, tokenizer = bert(), fast(special=True)
    found = explain_text(model, tokenizer, TEXT, target)
    assert found.tokens == ["[CLS]", *TEXT.split(), "[SEP]"] and found.targets == ["good"]
    batch = tokenizer(TEXT, return_tensors="pt")
    trace = RelevancePropagator(model, "attnlrp").trace(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    )
    torch.testing.assert_close(found.relevance, trace.relevance(2)[0], rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="bad, fine, good"):
        explain_text(model, tokenizer, TEXT, "great")
    likeliest = explain_text(model, tokenizer, TEXT).targets[0]
    assert likeliest == model.config.id2label[int(model(**batch).logits.argmax())]


def test_a_masked_language_model_is_asked_at_the_mask():
    model, tokenizer = bert("MaskedLM"), fast(special=True)
    text = "the film [MASK] not good"
    found = explain_text(model, tokenizer, text)
    batch = tokenizer(text, return_tensors="pt")
    assert found.targets == [WORDS[int(model(**batch).logits[0, 3].argmax())]]
    at_place = explain_text(model, tokenizer, text, (3, found.targets[0]))
    torch.testing.assert_close(at_place.relevance, found.relevance)


def test_the_model_is_left_as_it_was():
    model = llama().train()
    explain_text(model, fast(), TEXT, [1, 2])
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("tokenizer", "text", "target", "words"),
    [
        (3, TEXT, None, "tokenizer must be"),
        (fast(), "", None, "not empty"),
        (fast(), ["a", "b"], None, "must be a string"),
        (fast(), TEXT, 99, "out of range"),
        (fast(), TEXT, (9, 1), "positions 0 to 4"),
        (fast(), TEXT, lambda out: out, "trace"),
        (lambda text: [[1], [2]], TEXT, None, "one text"),
    ],
)
def test_what_cannot_be_explained(tokenizer, text, target, words):
    with pytest.raises(InputError, match=words):
        explain_text(llama(), tokenizer, text, target)


# ------------------------------------------------------------------------------------------------ how it shows


def luminance(color):
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in color)]
    return np.dot(linear, (0.2126, 0.7152, 0.0722))


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", [(255, 255, 255), (17, 17, 17)])
@pytest.mark.parametrize("value", np.linspace(-1, 1, 21))
def test_words_can_be_read_in_light_and_dark_themes(page, value):
    """WCAG's 4.5 : 1 between the letters and what is behind them, from the styles of the page."""
    markup = show_text(["word", "strongest"], [value, 1.0])._repr_html_()
    style = re.search(r"<span title='R [^']+' style='([^']+)'>word", markup)[1]
    red, green, blue, alpha = re.search(r"rgba\((\d+),(\d+),(\d+),([\d.]+)\)", style).groups()
    letters = (0, 0, 0) if "color:#000" in style else tuple(255 - v for v in page)
    covered = "inset 0 0 0 2em" in style  # else a line under the word, which is not behind its letters
    base = (255, 255, 255) if "background:#fff" in style else page
    share = float(alpha) if covered else 0.0
    behind = [share * int(c) + (1 - share) * b for c, b in zip((red, green, blue), base, strict=True)]
    assert contrast(letters, behind) >= 4.5


def test_one_target_shows_as_text():
    found = explain_text(Bag(), word_level(), "<b> was good", 1)
    page = found._repr_html_()
    assert "yes" in page and "&lt;b&gt;" in page and "<b>" not in page
    assert found._repr_png_() is None
    assert repr(found).startswith("TextExplanation(3 tokens, 1 targets)") and "good" in repr(found)


def test_several_targets_show_as_a_matrix():
    found = explain_text(Bag(), word_level(), TEXT, [0, 1])
    assert "<img alt='Relevance of 5 tokens for 2 targets'" in found._repr_html_()
    picture = np.asarray(Image.open(io.BytesIO(found._repr_png_())).convert("RGB"))
    axes = found.plot().axes[0]
    drawn = axes.images[0].get_array()
    wanted = found.relevance / found.relevance.abs().amax(1, keepdim=True)
    np.testing.assert_allclose(drawn, wanted.numpy(), rtol=1e-6)
    assert [t.get_text() for t in axes.get_xticklabels()] == TEXT.split()
    assert [t.get_text() for t in axes.get_yticklabels()] == ["no", "yes"]
    assert picture.shape[0] > 50 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_the_package_names_it():
    assert saliency_lrp.explain_text is explain_text and "TextExplanation" in dir(saliency_lrp)
