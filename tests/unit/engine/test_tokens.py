"""Hugging Face models by configuration: one relevance per token, from ids, masks or vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.torchvision_cpu import import_torchvision

pytest.importorskip("transformers")

IDS = torch.tensor([[2, 5, 7, 3, 0], [2, 9, 9, 8, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
SIZES = {"vocab_size": 50, "num_labels": 3}


def bert(attention: str = "sdpa") -> nn.Module:
    import_torchvision()  # transformers imports it where it finds it
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, attn_implementation=attention,
        **SIZES,
    )  # fmt: skip
    return spread_out(BertForSequenceClassification(config))


def distilbert(attention: str = "sdpa") -> nn.Module:
    import_torchvision()
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(0)
    config = DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, attn_implementation=attention, **SIZES)
    return spread_out(DistilBertForSequenceClassification(config))


def gpt2(attention: str = "sdpa") -> nn.Module:
    import_torchvision()
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=8, bos_token_id=1, eos_token_id=1,
        attn_implementation=attention,
    )  # fmt: skip
    return spread_out(GPT2LMHeadModel(config))


def spread_out(model: nn.Module) -> nn.Module:
    """Weights large enough that attention is far from uniform and tokens differ."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(10)
    return model.eval().double()


MODELS = {"bert": bert, "distilbert": distilbert, "gpt2": gpt2}


def last_token(output: object) -> Tensor:
    """The score of one next word."""
    return output["logits"][:, -1, 4]


def explained(model: nn.Module, composite: str = "attnlrp", **inputs: Tensor) -> tuple[object, Tensor]:
    trace = RelevancePropagator(model, composite, unknown="error").trace(**inputs)
    with torch.no_grad():
        assert torch.equal(trace.output["logits"], model(**inputs).logits)
    target = last_token if trace.output["logits"].dim() == 3 else 1
    return trace, trace.relevance(target=target)


@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp", "auto"])
@pytest.mark.parametrize("name", MODELS)
def test_ids_and_vectors_agree(name, composite):
    model = MODELS[name]()
    _, per_token = explained(model, composite, input_ids=IDS, attention_mask=MASK)
    assert per_token.shape == IDS.shape and per_token.any()
    vectors = model.get_input_embeddings()(IDS).detach()
    _, per_axis = explained(model, composite, inputs_embeds=vectors, attention_mask=MASK)
    torch.testing.assert_close(per_axis.sum(-1), per_token, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_masked_tokens_get_nothing(name):
    _, R = explained(MODELS[name](), input_ids=IDS, attention_mask=MASK)
    assert R[0, -1] == 0 and R[1].all()
    _, alone = explained(MODELS[name](), input_ids=IDS[:1, :-1])
    torch.testing.assert_close(R[:1, :-1], alone, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp"])
@pytest.mark.parametrize("name", MODELS)
def test_fused_and_written_out_attention_agree(name, composite):
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    _, fused = explained(MODELS[name]("sdpa"), composite, **inputs)
    _, written_out = explained(MODELS[name]("eager"), composite, **inputs)
    torch.testing.assert_close(fused, written_out, rtol=1e-7, atol=1e-9)


def test_later_words_get_nothing_in_a_causal_model():
    model = gpt2()
    trace = RelevancePropagator(model, "attnlrp").trace(input_ids=IDS)
    R = trace.relevance(target=lambda output: output["logits"][:, 2, 4])
    assert not R[:, 3:].any() and R[:, :3].all()


@pytest.mark.parametrize("name", MODELS)
def test_conserved_where_nothing_can_absorb(name):
    """Without biases and without what positions and segments add, CP-LRP hands all relevance to the tokens."""
    model = MODELS[name]()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "bias" in key or "position" in key or "token_type" in key or "wpe" in key:
                p.zero_()
    trace, _ = explained(model, "cp_lrp", input_ids=IDS, attention_mask=MASK)
    assert trace.report().conserved == pytest.approx(1, abs=1e-6)
