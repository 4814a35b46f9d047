"""LoReFT and LoRA: equal to plain loops, steer rows of a batch, leave the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from steerlens.engine.generation.decoding import decode
from steerlens.engine.generation.sampling import Sampling
from steerlens.engine.generation.stopping import Stopping
from steerlens.engine.intervention.context import hooked
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.steering.methods import lora, loreft
from steerlens.steering.methods.lora import LoraEdits
from steerlens.steering.methods.loreft import LoreftEdits, edited_positions
from steerlens.steering.methods.row_edits import RowEdits
from steerlens.steering.methods.task import Task
from tests.support.concepts import tiny_concepts, tiny_task

MakeSubject = Callable[..., Subject]
PROMPTS = ("the experience w20 w21 w100 w101 w102", "Note that")
N_NEW = 4

QUICK_LOREFT = loreft.Config(layers=(0, 3), rank=2, first=2, last=1, epochs=3, batch_size=4)
QUICK_LORA = lora.Config(layers=(0, 3), rank=2, epochs=3, batch_size=4, lr=0.02, dropout=0.0)


@pytest.fixture
def hf_model(tiny_folder: Callable[[str], Path]) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), attn_implementation="eager")


def naive_positions(n_prompt: int, first: int, last: int) -> list[int]:
    at_most = n_prompt // 2
    return sorted({*range(min(at_most, first)), *range(n_prompt - min(at_most, last), n_prompt)})


def naive_edit(
    x_LD: torch.Tensor, edit: loreft.Loreft, layer: int, concept: int, n_prompt: int, factor: float
) -> torch.Tensor:
    """The definition, position by position."""
    rotate, weight = edit.rotate[layer][concept].T, edit.weight[layer][concept].T
    rows = list(x_LD)
    for place in naive_positions(n_prompt, edit.first, edit.last):
        h_D = x_LD[place]
        change_r = weight @ h_D + edit.bias[layer][concept] - rotate @ h_D
        rows[place] = h_D + factor * rotate.T @ change_r
    return torch.stack(rows)


def naive_logits(
    subject: Subject,
    ids: list[int],
    n_prompt: int,
    edit: loreft.Loreft,
    concept: int,
    factor: float,
) -> torch.Tensor:
    def write(x: torch.Tensor, hook: Any, layer: int) -> torch.Tensor:
        return naive_edit(x[0], edit, layer, concept, n_prompt, factor)[None]

    hooks: list[Any] = [(f"blocks.{n}.hook_resid_post", partial(write, layer=n)) for n in edit.bias]
    return subject.lm.bridge.run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks)[0]


def random_loreft(n: int = 3, layers: tuple[int, ...] = (1, 3), d_model: int = 32) -> loreft.Loreft:
    draw = torch.Generator().manual_seed(0)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    return loreft.Loreft(
        rotate={one: torch.linalg.qr(made(n, d_model, 2)).Q for one in layers},
        weight={one: made(n, d_model, 2) for one in layers},
        bias={one: 10 * made(n, 2) for one in layers},
        first=2,
        last=3,
    )


def random_lora(n: int = 3, layers: tuple[int, ...] = (1, 3), d_model: int = 32) -> lora.Lora:
    draw = torch.Generator().manual_seed(0)
    down = {one: torch.randn(n, 2, d_model, generator=draw) for one in layers}
    up = {one: torch.randn(n, d_model, 2, generator=draw) for one in layers}
    return lora.Lora(down, up)


def test_positions_are_the_prompts_first_and_last_halved_if_short() -> None:
    n_prompt = [12, 3, 1, 7]
    length = 14
    for starts in ([0, 0, 0, 0], [length - one for one in n_prompt]):
        found = edited_positions(
            torch.tensor(n_prompt), length, 5, 5, torch.tensor(starts)
        ).tolist()
        for row, n, start in zip(found, n_prompt, starts, strict=True):
            expected = [start + one for one in naive_positions(n, 5, 5)]
            assert [place for place, edited in enumerate(row) if edited] == expected


def texts_of(subject: Subject, edits: RowEdits, prompt_B: list[int]) -> list[list[int]]:
    prompts = [subject.to_tokens(prompt)[0].tolist() for prompt in PROMPTS]
    stopping = Stopping(subject.lm.tokenizer, set(), [], N_NEW)
    texts = decode(
        subject, prompts, torch.tensor(prompt_B), edits, [0] * len(prompt_B),
        Sampling(temperature=0.0), stopping,
    )  # fmt: skip
    return [text.token_ids for text in texts]


CONCEPTS, FACTORS, PROMPT_OF = [2, 0, 1, 0, 2], [1.0, 0.5, 0.0, 2.0, 1.0], [0, 1, 0, 0, 1]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_rows_of_loreft_are_what_whole_forwards_give(tiny_subject: MakeSubject, kind: str) -> None:
    subject, edit = tiny_subject(kind), random_loreft()
    prompts = [subject.to_tokens(prompt)[0].tolist() for prompt in PROMPTS]
    lengths = [len(prompts[one]) for one in PROMPT_OF]
    edits = LoreftEdits(subject, edit, CONCEPTS, FACTORS, lengths)
    found = texts_of(subject, edits, PROMPT_OF)
    assert edits.fired == 1  # the prompt; new tokens aren't edited
    plain = texts_of(subject, LoreftEdits(subject, edit, [0], [0.0], lengths[:1]), [0])[0]
    for ids, concept, factor, place in zip(found, CONCEPTS, FACTORS, PROMPT_OF, strict=True):
        expected = list(prompts[place])
        for _ in range(N_NEW):
            logits = naive_logits(subject, expected, len(prompts[place]), edit, concept, factor)
            expected.append(int(logits[-1].argmax()))
        assert ids == expected[len(prompts[place]) :]
    assert found[2] == plain  # factor 0
    assert found[0] != plain


def test_rows_of_lora_are_what_changed_weights_give(
    tiny_subject: MakeSubject, hf_model: Any
) -> None:
    subject, change = tiny_subject(), random_lora()
    prompts = [subject.to_tokens(prompt)[0].tolist() for prompt in PROMPTS]
    edits = LoraEdits(subject, change, CONCEPTS, FACTORS)
    found = texts_of(subject, edits, PROMPT_OF)
    assert edits.fired == N_NEW
    original = {name: one.clone() for name, one in hf_model.state_dict().items()}
    for ids, concept, factor, place in zip(found, CONCEPTS, FACTORS, PROMPT_OF, strict=True):
        hf_model.load_state_dict(original)
        for layer in change.up:
            weight = hf_model.model.layers[layer].self_attn.o_proj.weight.data
            weight += factor * change.up[layer][concept] @ change.down[layer][concept]
        whole = hf_model.generate(
            torch.tensor([prompts[place]]), max_new_tokens=N_NEW, do_sample=False,
            attention_mask=torch.ones(1, len(prompts[place])), eos_token_id=None,
        )  # fmt: skip
        assert ids == whole[0, len(prompts[place]) :].tolist()


def edits_of(subject: Subject, which: str) -> RowEdits:
    if which == "LoRA":
        return LoraEdits(subject, random_lora(), [1], [1.0])
    length = subject.to_tokens(PROMPTS[0]).shape[1]
    return LoreftEdits(subject, random_loreft(), [1], [1.0], [length])


@pytest.mark.parametrize("which", ["LoRA", "LoReFT"])
def test_the_models_own_generate_writes_the_same_and_is_restored(
    tiny_subject: MakeSubject, which: str
) -> None:
    subject = tiny_subject()
    tokens = subject.to_tokens(PROMPTS[0])
    hf: Any = subject.lm.bridge.original_model
    before = {name: one.clone() for name, one in hf.state_dict().items()}
    plain = subject.lm.bridge(tokens)
    with hooked(subject, edits_of(subject, which)):
        whole = hf.generate(
            tokens, max_new_tokens=N_NEW, do_sample=False, eos_token_id=None,
            attention_mask=torch.ones_like(tokens),
        )  # fmt: skip
        assert not torch.allclose(subject.lm.bridge(tokens), plain)
    assert [whole[0, tokens.shape[1] :].tolist()] == texts_of(
        subject, edits_of(subject, which), [0]
    )
    assert torch.equal(subject.lm.bridge(tokens), plain)

    def fail() -> None:
        with hooked(subject, edits_of(subject, which)):
            subject.lm.bridge(tokens)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.equal(subject.lm.bridge(tokens), plain)
    assert all(torch.equal(one, before[name]) for name, one in hf.state_dict().items())


def naive_loreft(task: Task, concept: int, config: loreft.Config, seed: int) -> list[Any]:
    """One concept alone, one text a forward, each parameter by its own name."""
    rng = task.rng(concept, "LoReFT", seed)
    D, r = task.subject.lm.d_model, config.rank
    modules = []
    for _ in config.layers:
        rotation = torch.nn.Linear(r, D, bias=False)
        start = torch.from_numpy(rng.standard_normal((D, r))).float()
        rotation.weight.data = torch.linalg.qr(start).Q
        torch.nn.utils.parametrizations.orthogonal(rotation, use_trivialization=False)
        source = torch.nn.Linear(D, r)
        drawn = torch.from_numpy(rng.uniform(-(D**-0.5), D**-0.5, (D + 1, r))).float()
        source.weight.data, source.bias.data = drawn[:D].T.clone(), drawn[D].clone()
        modules.append((rotation, source))
    parameters = [one for pair in modules for module in pair for one in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0)
    texts = task.labelled.positives[concept]
    n_batches = -(-len(texts) // config.batch_size)
    steps = config.epochs * max(1, n_batches // config.accumulate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: max(0.0, 1 - s / steps))
    for _ in range(config.epochs):
        order = rng.permutation(len(texts))
        for number in range(n_batches):
            of = dict(zip(config.layers, modules, strict=True))
            edit = loreft.Loreft(
                rotate={n: rotation.weight[None] for n, (rotation, _) in of.items()},
                weight={n: source.weight.T[None] for n, (_, source) in of.items()},
                bias={n: source.bias[None] for n, (_, source) in of.items()},
                first=config.first,
                last=config.last,
            )  # fmt: skip
            nll = []
            for k in order[number * config.batch_size :][: config.batch_size]:
                text = task.labelled.texts[texts[k]]
                logits = naive_logits(task.subject, text.ids, text.n_prompt, edit, 0, 1.0)
                log_p = logits.log_softmax(-1)
                nll += [-log_p[t - 1, text.ids[t]] for t in range(text.n_prompt, len(text.ids))]
            torch.stack(nll).mean().backward()
            if (number + 1) % config.accumulate == 0 or number + 1 == n_batches:
                torch.nn.utils.clip_grad_norm_(parameters, config.clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    return [(m[0].weight.detach(), m[1].weight.detach().T, m[1].bias.detach()) for m in modules]


def test_loreft_trained_together_equals_a_plain_loop(tiny_subject: MakeSubject) -> None:
    task = tiny_task(tiny_subject(), tiny_concepts(2))
    found = loreft.learn(task, QUICK_LOREFT, seed=1)
    for concept in range(2):
        expected = naive_loreft(task, concept, QUICK_LOREFT, seed=1)
        for layer, (rotate, weight, bias) in zip(QUICK_LOREFT.layers, expected, strict=True):
            close = partial(torch.testing.assert_close, rtol=0, atol=1e-3)
            close(found.rotate[layer][concept], rotate)
            close(found.weight[layer][concept], weight)
            close(found.bias[layer][concept], bias)
    for layer in QUICK_LOREFT.layers:
        rotate_CDr = found.rotate[layer]
        torch.testing.assert_close(
            rotate_CDr.transpose(1, 2) @ rotate_CDr, torch.eye(2).expand(2, 2, 2), rtol=0, atol=1e-5
        )


def loss_of(task: Task, edits_of_row: Callable[[int], RowEdits]) -> float:
    """Of the first concept's positives, mean over their tokens."""
    nll: list[torch.Tensor] = []
    for place in task.labelled.positives[0]:
        text = task.labelled.texts[place]
        with torch.no_grad(), hooked(task.subject, edits_of_row(text.n_prompt)):
            log_p = task.subject.lm.bridge(torch.tensor([text.ids]))[0].log_softmax(-1)
        nll += [-log_p[t - 1, text.ids[t]] for t in range(text.n_prompt, len(text.ids))]
    return float(torch.stack(nll).mean())


def test_lora_makes_positives_more_likely_and_gives_the_model_back(
    tiny_subject: MakeSubject, hf_model: Any
) -> None:
    task = tiny_task(tiny_subject(), tiny_concepts(2, n_texts=(12, 4)))
    before = {name: one.clone() for name, one in hf_model.state_dict().items()}
    config = lora.Config(layers=(1, 3), epochs=15, batch_size=4, lr=0.02)
    found = lora.learn(task, config, 0, hf_model)
    after = hf_model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], one) for name, one in after.items())
    losses = [
        loss_of(task, lambda n, s=s: LoraEdits(task.subject, found, [0], [s])) for s in (0.0, 1.0)
    ]
    assert losses[1] < losses[0] - 0.2
    again = lora.learn(task, config, 0, hf_model)
    for layer in config.layers:
        assert torch.equal(again.up[layer], found.up[layer])


def test_a_lora_of_a_concept_alone_is_the_same(tiny_subject: MakeSubject, hf_model: Any) -> None:
    subject, concepts = tiny_subject(), tiny_concepts(2)
    config = lora.Config(layers=(2,), epochs=2, batch_size=4)
    whole = lora.learn(tiny_task(subject, concepts), config, 0, hf_model)
    alone = lora.learn(tiny_task(subject, concepts.only(["concept 1"])), config, 0, hf_model)
    torch.testing.assert_close(alone.up[2][0], whole.up[2][1], rtol=0, atol=1e-6)


def test_what_lora_adds_is_what_peft_adds(tiny_subject: MakeSubject, hf_model: Any) -> None:
    task = tiny_task(tiny_subject(), tiny_concepts(1))
    tokens = torch.tensor([task.labelled.texts[0].ids])
    outputs: list[torch.Tensor] = []
    real = lora._changes

    def caught(model: Any, config: lora.Config) -> Any:
        model.eval()
        with torch.no_grad():
            outputs.append(model(input_ids=tokens).logits)
        return real(model, config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora, "_changes", caught)
        found = lora.learn(task, QUICK_LORA, 0, hf_model)
    with hooked(task.subject, LoraEdits(task.subject, found, [0], [1.0])), torch.no_grad():
        logits = task.subject.lm.bridge(tokens)
    torch.testing.assert_close(logits, outputs[0], rtol=0, atol=1e-4)
    assert not torch.allclose(logits, task.subject.lm.bridge(tokens), atol=1e-2)


def test_layers_and_matrices_that_arent_there_are_refused(
    tiny_subject: MakeSubject, hf_model: Any
) -> None:
    task = tiny_task(tiny_subject(), tiny_concepts(1))
    with pytest.raises(SteerlensError, match=r"LoReFT's layer 4 .* 0 to 3"):
        loreft.learn(task, loreft.Config(layers=(3, 4)), 0)
    with pytest.raises(SteerlensError, match=r"LoRA's layer 4 .* 0 to 3"):
        lora.learn(task, lora.Config(layers=(3, 4)), 0, hf_model)
    with pytest.raises(SteerlensError, match="can't change 'c_proj'"):
        lora.learn(task, lora.Config(layers=(1,), target="c_proj"), 0, hf_model)
    with pytest.raises(SteerlensError, match="there is no concept 3"):
        LoraEdits(task.subject, random_lora(), [3], [1.0])
    with pytest.raises(SteerlensError, match="2 concepts for 1 factors"):
        LoraEdits(task.subject, random_lora(), [0, 1], [1.0])


def test_smaller_settings_name_layers_that_a_small_model_has() -> None:
    assert lora.smaller(8).layers == loreft.smaller(8).layers == (1, 3, 5, 7)
