"""The mixers against the laws, against numpy, and against the published counts."""

from itertools import product

import numpy as np
import pytest
import torch

from mixnas import mixers
from mixnas.errors import InvalidSpace, UnknownMixer
from mixnas.testing import MixerContract, images, randomise

torch.set_num_threads(1)


@pytest.mark.parametrize("name", mixers.names())
class TestEveryMixer(MixerContract):
    choices = {
        "additive": {"head_width": (8, 16)},
        "attention": {"head_width": (8, 16)},
        "hilo": {"head_width": (8, 16), "window": (1, 2, 3), "alpha": (0.3, 0.9)},
        "single_head": {"partial": (0.1, 0.25)},
        "xnorm": {"head_width": (8, 16), "bottleneck": (0.3, 1.0)},
    }


@pytest.mark.parametrize("name", ["additive"])
@pytest.mark.parametrize(
    "options",
    [
        {"score": "head"},
        {"score": "head", "value": "own", "project": True},
        {"value": "own", "qkv_bias": False},
    ],
    ids=str,
)
class TestAdditiveOptions(MixerContract):
    """The laws again, for the readings of Fastformer that are not the default."""

    choices = {"additive": {"head_width": (8, 16)}}

    @pytest.fixture(autouse=True)
    def _given(self, options):
        self.options = {"additive": options}


# The equations again, in numpy, one head, one window and one group at a time.


def softmax(scores, axis):
    powers = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def array(tensor):
    return tensor.detach().numpy()


def heads_of(width, head_width):
    return [slice(i, i + head_width) for i in range(0, width, head_width)]


def numpy_attention(mixer, x, head_width):
    batch, width, height, columns = x.shape
    y = np.empty_like(x)
    (wq, wk, wv), (bq, bk, bv) = (
        array(mixer.query_key_value.weight),
        array(mixer.query_key_value.bias),
    )
    for b in range(batch):
        t = x[b].reshape(width, -1).T
        q, k, v = t @ wq.T + bq, t @ wk.T + bk, t @ wv.T + bv
        out = np.empty_like(q)
        for s in heads_of(width, head_width):
            out[:, s] = softmax(q[:, s] @ k[:, s].T / np.sqrt(head_width), 1) @ v[:, s]
        out = out @ array(mixer.project.weight)[0].T + array(mixer.project.bias)[0]
        y[b] = out.T.reshape(width, height, columns)
    return y


def numpy_additive(mixer, x, head_width, score="full", value="query", project=False):
    batch, width, height, columns = x.shape
    y = np.empty_like(x)
    bias = mixer.query_key.bias
    (wq, wk), (bq, bk) = array(mixer.query_key.weight), (0, 0) if bias is None else array(bias)
    wa, ba = array(mixer.query_score.weight)[0], array(mixer.query_score.bias)[0]
    wb, bb = array(mixer.key_score.value), array(mixer.key_score_bias.value)
    wt, bt = array(mixer.transform.weight)[0], array(mixer.transform.bias)[0]
    heads = heads_of(width, head_width)

    def pooled(t, weight, bias):
        """Each head's channels, weighted by its own score of every token."""
        parts = []
        for i, s in enumerate(heads):
            scores = t[:, s] @ weight[0] + bias[0] if score == "head" else t @ weight[i] + bias[i]
            parts.append(softmax(scores / np.sqrt(head_width), 0) @ t[:, s])
        return np.concatenate(parts)

    for b in range(batch):
        t = x[b].reshape(width, -1).T
        q, k = t @ wq.T + bq, t @ wk.T + bk
        v = q
        if value == "own":
            bias = 0 if mixer.value.bias is None else array(mixer.value.bias)[0]
            v = t @ array(mixer.value.weight)[0].T + bias
        p = pooled(q, wa, ba) * k
        out = (pooled(p, wb, bb) * v) @ wt.T + bt + q
        if project:
            out = out @ array(mixer.project.weight)[0].T + array(mixer.project.bias)[0]
        y[b] = out.T.reshape(width, height, columns)
    return y


def numpy_xnorm(mixer, x, head_width, axis=0):
    batch, width, height, columns = x.shape
    y = np.empty_like(x)
    (wq, wk, wv), (bq, bk, bv) = (
        array(mixer.query_key_value.weight),
        array(mixer.query_key_value.bias),
    )
    gamma = array(mixer.gamma.value)
    for b in range(batch):
        t = x[b].reshape(width, -1).T
        q, k, v = t @ wq.T + bq, t @ wk.T + bk, t @ wv.T + bv
        out = np.empty_like(q)
        for i, s in enumerate(heads_of(q.shape[1], head_width)):
            kv = k[:, s].T @ v[:, s]
            kv = gamma[i] * kv / np.sqrt((kv**2).sum(axis, keepdims=True) + mixer.eps)
            rows = np.sqrt((q[:, s] ** 2).sum(1, keepdims=True) + mixer.eps)
            out[:, s] = gamma[i] * q[:, s] / rows @ kv
        out = out @ array(mixer.project.weight)[0].T + array(mixer.project.bias)[0]
        y[b] = out.T.reshape(width, height, columns)
    return y


def numpy_single_head(mixer, x, partial):
    batch, width, height, columns = x.shape
    p = round(width * partial)
    y = np.empty_like(x)

    def batch_norm(t, norm):
        mean, variance = array(norm.running_mean), array(norm.running_var)
        return (t - mean) / np.sqrt(variance + 1e-5) * array(norm.weight) + array(norm.bias)

    for b in range(batch):
        first, rest = x[b, :p], x[b, p:]
        first = (first - first.mean()) / np.sqrt(first.var() + 1e-5)
        weight, bias = array(mixer.part_norm.weight), array(mixer.part_norm.bias)
        t = first.reshape(p, -1).T * weight + bias
        t = batch_norm(t @ array(mixer.fused.weight)[0].T, mixer.fused_norm)
        q, k, v = t[:, :16], t[:, 16:32], t[:, 32:]
        mixed = softmax(q @ k.T / 4, 1) @ v
        joined = np.maximum(np.concatenate([mixed, rest.reshape(width - p, -1).T], 1), 0)
        out = batch_norm(joined @ array(mixer.project.weight)[0].T, mixer.project_norm)
        y[b] = out.T.reshape(width, height, columns)
    return y


def numpy_hilo(mixer, x, head_width, window, alpha):
    batch, width, height, columns = x.shape
    heads = width // head_width
    low = heads if window == 1 else int(heads * alpha)
    high = heads - low
    rows, cols = -(-height // window), -(-columns // window)
    padded = np.zeros((batch, rows * window, cols * window, width))
    padded[:, :height, :columns] = x.transpose(0, 2, 3, 1)
    out = np.zeros_like(padded)
    cells = [
        (slice(i * window, (i + 1) * window), slice(j * window, (j + 1) * window))
        for i, j in product(range(rows), range(cols))
    ]

    def mix(q, k, v):
        parts = heads_of(q.shape[1], head_width)
        return np.concatenate(
            [softmax(q[:, s] @ k[:, s].T / np.sqrt(head_width), 1) @ v[:, s] for s in parts], 1
        )

    def linear(layer, group=0):
        bias = 0 if layer.bias is None else array(layer.bias)[group]
        return lambda t: t @ array(layer.weight)[group].T + bias

    for b in range(batch):
        if high:
            edge = high * head_width
            to_q, to_k, to_v = (linear(mixer.high_query_key_value, i) for i in range(3))
            for i, j in cells:
                t = padded[b, i, j].reshape(-1, width)
                mixed = linear(mixer.high_project)(mix(to_q(t), to_k(t), to_v(t)))
                out[b, i, j, :edge] = mixed.reshape(window, window, edge)
        if low:
            pooled = np.stack([padded[b, i, j].mean((0, 1)) for i, j in cells])
            t = padded[b].reshape(-1, width)
            to_k, to_v = (linear(mixer.low_key_value, i) for i in range(2))
            mixed = mix(linear(mixer.low_query)(t), to_k(pooled), to_v(pooled))
            mixed = linear(mixer.low_project)(mixed)
            out[b, ..., high * head_width :] = mixed.reshape(*padded.shape[1:3], -1)
    return out[:, :height, :columns].transpose(0, 3, 1, 2)


def numpy_aff(mixer, x, activation):
    """Channel f belongs to group f % 8; the last synthesis drops what is not real."""
    batch, columns = x.shape[0], x.shape[3]
    y = np.empty_like(x)
    w1, b1, w2, b2 = (
        array(table.value)[0] + 1j * array(table.value)[1]
        for table in (mixer.weight_in, mixer.bias_in, mixer.weight_out, mixer.bias_out)
    )

    def shrink(t):
        return np.sign(t) * np.maximum(np.abs(t) - 0.01, 0)

    for b, g in product(range(batch), range(8)):
        spectrum = np.fft.fft2(x[b, g::8], norm="ortho")[..., : columns // 2 + 1]
        z = np.einsum("oi,ihw->ohw", w1[g], spectrum) + b1[g][:, None, None]
        z = activation(z.real) + 1j * activation(z.imag)
        z = np.einsum("oi,ihw->ohw", w2[g], z) + b2[g][:, None, None]
        masked = (shrink(z.real) + 1j * shrink(z.imag)) * spectrum
        rows = np.fft.ifft(masked, axis=1, norm="ortho")
        y[b, g::8] = np.fft.irfft(rows, n=columns, axis=2, norm="ortho")
    return y + x


def relu(t):
    return np.maximum(t, 0)


def silu(t):
    return t / (1 + np.exp(-t))


CASES = [
    ("attention", {"head_width": 8}, numpy_attention, {"head_width": 8}),
    ("additive", {"head_width": 8}, numpy_additive, {"head_width": 8}),
    *(
        ("additive", {"head_width": 8, **option}, numpy_additive, {"head_width": 8, **option})
        for option in (
            {"score": "head"},
            {"value": "own"},
            {"score": "head", "value": "own", "project": True},
        )
    ),
    ("additive", {"head_width": 8, "qkv_bias": False}, numpy_additive, {"head_width": 8}),
    ("xnorm", {"head_width": 8}, numpy_xnorm, {"head_width": 8}),
    ("xnorm", {"head_width": 8, "eps": 0.0}, numpy_xnorm, {"head_width": 8}),
    ("xnorm", {"head_width": 8, "bottleneck": 0.5}, numpy_xnorm, {"head_width": 8}),
    ("xnorm", {"head_width": 8, "axis": "value"}, numpy_xnorm, {"head_width": 8, "axis": 1}),
    ("single_head", {"partial": 0.25}, numpy_single_head, {"partial": 0.25}),
    ("single_head", {"partial": 0.75}, numpy_single_head, {"partial": 0.75}),
    ("aff", {}, numpy_aff, {"activation": relu}),
    ("aff", {"activation": "silu"}, numpy_aff, {"activation": silu}),
    *(
        ("hilo", {**knobs, **option}, numpy_hilo, knobs)
        for knobs in (
            {"head_width": 8, "window": 2, "alpha": 0.5},
            {"head_width": 8, "window": 2, "alpha": 0.9},
            {"head_width": 8, "window": 3, "alpha": 0.0},
            {"head_width": 8, "window": 4, "alpha": 1.0},
            {"head_width": 8, "window": 1, "alpha": 0.5},
        )
        for option in ({}, {"qkv_bias": False})
    ),
]


@pytest.mark.parametrize("size", [(7, 9), (13, 15), (14, 14), (1, 1), (17, 16)])
@pytest.mark.parametrize(("name", "options", "reference", "knobs"), CASES)
def test_computes_its_equations(name, options, reference, knobs, size):
    mixer = mixers.create(name, 32, **options)
    randomise(mixer)
    mixer.double().eval()
    x = images(2, 32, size, torch.float64)
    with torch.no_grad():
        difference = np.abs(mixer(x).numpy() - reference(mixer, x.numpy(), **knobs)).max()
    assert difference < 1e-10


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (8, 8), (1, 2)])
def test_aff_by_product_is_aff_by_transform(size):
    mixer = randomise(mixers.create("aff", 32)).double()
    x = images(2, 32, size, torch.float64).unflatten(1, (-1, 8))
    with torch.no_grad():
        assert (mixer.by_product(x) - mixer.by_transform(x)).abs().max() < 1e-10


def test_aff_made_in_inference_mode_trains_after():
    mixer = randomise(mixers.create("aff", 16))
    x = images(1, 16, (3, 11), torch.float32)
    with torch.inference_mode():
        mixer(x)
    mixer(x.requires_grad_()).sum().backward()
    assert x.grad.isfinite().all()


def test_aff_keeps_float64_and_computes_half_in_float32():
    mixer = randomise(mixers.create("aff", 16))
    x = images(1, 16, (13, 12), torch.float64)
    assert mixer.double()(x).dtype is torch.float64
    half = mixer.bfloat16()(x.bfloat16())
    assert half.dtype is torch.bfloat16
    expected = mixer.float()(x.bfloat16().float())
    assert (half.float() - expected).abs().max() <= 0.01 * expected.abs().max()


def test_xnorm_class_attention_is_self_attention_of_those_queries():
    mixer = randomise(mixers.create("xnorm", 32, num_heads=4)).double()
    x = images(2, 32, (4, 5), torch.float64)
    tokens = x.flatten(2).transpose(1, 2)
    with torch.no_grad():
        expected = mixer(x).flatten(2).transpose(1, 2)[:, :3]
        assert (mixer.attend(tokens[:, :3], tokens) - expected).abs().max() < 1e-12


def test_xnorm_survives_rows_of_zeros():
    mixer = mixers.create("xnorm", 32, head_width=8)
    x = torch.zeros(1, 32, 3, 3, requires_grad=True)
    y = mixer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_single_head_is_shut_at_first():
    mixer = mixers.create("single_head", 32)
    assert not mixer(images(2, 32, (4, 4), torch.float32)).any()


@pytest.mark.parametrize("channels", [224, 308, 320, 336, 448])
def test_single_head_takes_the_published_parts(channels):
    published = {224: 48, 308: 66, 320: 68, 336: 72, 448: 96}[channels]
    mixer = mixers.create("single_head", channels, partial=published / channels)
    assert mixer.part_norm.weight.shape == (published,)


@pytest.mark.parametrize(
    ("name", "knobs", "parameters"),
    [
        ("hilo", {"num_heads": 8, "window": 2, "alpha": 0.9}, 248_832),
        ("hilo", {"num_heads": 8, "window": 2, "alpha": 0.5}, 230_400),
        ("aff", {}, 33_792),
        ("single_head", {"partial": 0.25}, 72_512),
        ("additive", {"num_heads": 8}, 201_488),
        ("additive", {"num_heads": 16}, 205_600),
        ("additive", {"num_heads": 8, "score": "head"}, 3 * 256**2 + 3 * 256 + 2 * 33),
        ("additive", {"num_heads": 8, "value": "own"}, 201_488 + 256**2 + 256),
        ("additive", {"num_heads": 8, "project": True}, 201_488 + 256**2 + 256),
        ("xnorm", {"num_heads": 8}, 263_176),
        ("xnorm", {"num_heads": 8, "bottleneck": 0.5}, 131_720),
        ("attention", {"num_heads": 8}, 4 * 256**2 + 4 * 256),
        ("identity", {}, 0),
    ],
)
def test_parameters_as_published(name, knobs, parameters):
    mixer = mixers.create(name, 256, **knobs)
    assert sum(p.numel() for p in mixer.parameters()) == parameters


def test_hilo_parameters_of_the_authors_readme():
    mixer = mixers.create("hilo", 384, num_heads=12, alpha=0.5, qkv_bias=False)
    assert sum(p.numel() for p in mixer.parameters()) == 516_480


@pytest.mark.parametrize("name", mixers.names())
def test_no_element_is_blind_but_the_declared(name):
    """A softmax and a batch norm undo a shift, to the last element; nothing else is lost."""
    kind = mixers.get(name)
    mixer = randomise(kind(32, **{knob: values[0] for knob, values in kind.knobs.items()}))
    x = images(3, 32, (5, 6), torch.float64).requires_grad_()
    (mixer.double().train()(x) * x.detach().sin()).sum().backward()
    for declared in kind.shift_invariant:
        path, _, index = declared.rstrip("]").partition("[")
        if path.split(".")[0] not in dict(mixer.named_children()):
            continue  # one head only: HiLo has a single branch at this width
        start, _, stop = index.partition(":")
        part = slice(int(start), int(stop or start) + (not stop)) if start else slice(None)
        gradient = mixer.get_parameter(path).grad
        assert gradient[part].abs().max() < 1e-10, declared
        gradient[part] = 1
    for path, parameter in mixer.named_parameters():
        assert parameter.grad.abs().min() > 0, path


def test_names_and_aliases():
    known = {"additive", "aff", "attention", "hilo", "identity", "single_head", "xnorm"}
    assert known <= set(mixers.names())
    with pytest.raises(UnknownMixer, match="did you mean 'additive'"):
        mixers.get("fastformer")
    with pytest.raises(UnknownMixer, match="did you mean 'additive'"):
        mixers.get("aditive")


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("attention", {"num_heads": 7}, "num_heads=7 does not divide 64 channels"),
        ("attention", {"head_width": 24}, "head_width=24 does not divide"),
        ("hilo", {"head_width": (16, 24)}, "head_width=24 does not divide"),
        ("hilo", {"alpha": 1.5}, "alpha=1.5 is not between 0 and 1"),
        ("hilo", {"window": 0}, "window=0 is less than 1"),
        ("hilo", {"windw": 2}, "no knob 'windw'; did you mean 'window'"),
        ("single_head", {"partial": 0.0}, "partial=0.0"),
        ("xnorm", {"bottleneck": 0.0}, "bottleneck=0.0 is not positive"),
        ("additive", {"score": "heads"}, "no score 'heads'; did you mean 'head'"),
        ("additive", {"value": "key"}, "no value 'key'; did you mean 'query'"),
        ("identity", {"num_heads": 2}, "no knob 'num_heads'"),
    ],
)
def test_what_does_not_fit_is_said(name, knobs, message):
    with pytest.raises(InvalidSpace, match=message):
        mixers.create(name, 64, **knobs)


def test_aff_wants_whole_groups():
    with pytest.raises(InvalidSpace, match="multiple of 8"):
        mixers.create("aff", 60)
