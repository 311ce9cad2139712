"""The compiled layer of a CPU against the references: codes, selection and attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

import encoder_cases as cases
from hata_kernels.attend import RATIOS, LeftOut, attend_naive, mix_left_out
from hata_kernels.cpu import Rows, SparseLayer
from hata_kernels.rank import rank
from hata_kernels.tally import SIZE

SCALE = 0.125
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
DTYPES = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: str(dtype)[6:])
#: How far attention may be from PyTorch's, which rounds to the dtype inside.
CLOSE = {torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float32: 2e-5}


class Layer:
    """A layer of random keys and what its encoder made of them, and rows of any lengths."""

    def __init__(
        self, encoder, lengths, budgets, make_token_slots, dtype=torch.float32, ends=(4, 8)
    ):
        self.encoder, self.lengths = encoder, lengths
        heads, dim, self.slots = encoder.num_kv_heads, encoder.head_dim, max(lengths) + 50
        self.k, self.v = (torch.randn(self.slots, heads, dim).to(dtype) for _ in "kv")
        self.q = torch.randn(len(lengths), heads * encoder.group, dim).to(dtype)
        self.codes = torch.zeros(self.slots, heads, encoder.words, dtype=torch.int32)
        self.scales = None
        if encoder.scale_bits:
            self.scales = torch.zeros(self.slots, heads, dtype=encoder.scale_dtype)
        every = torch.arange(self.slots)
        encoder.encode_keys(self.k, codes=self.codes, slots=every, scales=self.scales)
        self.table = make_token_slots(lengths, max(lengths) + 5, self.slots)
        self.budgets = torch.tensor(budgets, dtype=torch.int32)
        self.ends = dict(zip(("sink", "recent"), ends, strict=True))

    def make(self) -> SparseLayer:
        buffers = (self.k, self.v, self.codes, self.scales)
        return SparseLayer(self.encoder, *buffers, **self.ends, scale=SCALE)

    def rows(self, some=slice(None)) -> Rows:
        lengths, heads = torch.tensor(self.lengths)[some], self.encoder.num_kv_heads
        return Rows(self.table[some].contiguous(), lengths, self.budgets[some], heads)

    def ranked(self) -> torch.Tensor:
        return torch.tensor(self.lengths) > self.budgets

    def selection(self, rows: Rows) -> torch.Tensor:
        """What the reference selects with the very planes that the call compared."""
        q_codes = torch.zeros(len(self.lengths), *rows.planes.shape[1:], dtype=torch.int32)
        q_codes[self.ranked()] = torch.from_numpy(rows.planes)[self.ranked()]
        arguments = (self.codes, self.table, torch.tensor(self.lengths), self.budgets)
        return rank(
            q_codes.flatten(1, 2),
            *arguments,
            **self.ends,
            plane_weights=self.encoder.plane_weights,
            k_max=rows.selected.shape[2],
            scales=self.scales,
            scale_bits=self.encoder.scale_bits,
            bias=self.bias(rows),
        )

    def bias(self, rows: Rows) -> torch.Tensor | None:
        """Of the call's queries, by distance; 0 for those of rows that were not ranked."""
        if rows.biases.shape[2] == 0:
            return None
        bias = torch.zeros(rows.biases.shape, dtype=torch.int32)
        bias[self.ranked()] = torch.from_numpy(rows.biases)[self.ranked()]
        return bias

    def check(self, rows: Rows, out: torch.Tensor) -> None:
        """The selection is the reference's, and the attention to it, but for rounding."""
        assert torch.equal(rows.selected, self.selection(rows))
        kept = torch.minimum(self.budgets, torch.tensor(self.lengths))
        expected = attend_naive(self.q, self.k, self.v, rows.selected, kept, scale=SCALE)
        assert out.dtype == expected.dtype
        close = CLOSE[out.dtype]
        torch.testing.assert_close(out, expected, atol=close, rtol=close)


@DTYPES
@cases.ALL
def test_a_step_is_the_references(
    make_token_slots, dtype, method, kv_heads, group, dim, bits, options
) -> None:
    encoder = cases.make(method, kv_heads, group, dim, bits, **options)
    shape = ([1, 12, 40, 41, 300, 700], [10, 12, 40, 40, 33, 64])
    layer = Layer(encoder, *shape, make_token_slots, dtype)
    places = torch.randperm(layer.slots)[:9]
    codes, scales = layer.codes.clone(), None if layer.scales is None else layer.scales.clone()
    layer.codes[places] = -987654321
    if scales is not None:
        layer.scales[places] = 77
    rows = layer.rows()
    rows.selected.fill_(-987654321)
    layer.check(rows, layer.make()(layer.q, rows, places.int()))
    # Its codes are those of the definition, and nothing else was written.
    cases.assert_key_bits(cases.unpack_bits(layer.codes[places]), encoder, layer.k[places])
    rest = torch.ones(layer.slots, dtype=torch.bool)
    rest[places] = False
    assert torch.equal(layer.codes[rest], codes[rest])
    if scales is not None:
        cases.assert_scales(layer.scales[places], encoder, layer.k[places])
        assert torch.equal(layer.scales[rest], scales[rest])
    ranked = layer.ranked()
    planes = cases.unpack_bits(torch.from_numpy(rows.planes)[ranked])
    cases.assert_query_bits(planes, encoder, layer.q[ranked])
    bias = layer.bias(rows)
    cases.assert_bias(bias if bias is None else bias[ranked], encoder, layer.q[ranked])


def left_out_of(layer: Layer) -> tuple[LeftOut, LeftOut]:
    """The rows' sums but for their newest tokens, twice; other requests' are NaN."""
    heads, group, dim = layer.k.shape[1], layer.encoder.group, layer.k.shape[2]
    rows = torch.randperm(len(layer.lengths) + 3)[: len(layer.lengths)]
    sums = torch.full((len(layer.lengths) + 3, heads, dim), torch.nan)
    for row, slots, length in zip(rows, layer.table, layer.lengths, strict=True):
        sums[row] = layer.v[slots[: length - 1].long()].float().sum(0)
    weights = torch.rand(heads * group, RATIOS)
    weights[:, 0] = 0
    return tuple(LeftOut(sums.clone(), rows, weights) for _ in range(2))


@DTYPES
@pytest.mark.parametrize("method", ["hata", "asymmetric", "hashattention"])
def test_the_mean_of_the_values_left_out_is_the_references(make_token_slots, method, dtype) -> None:
    encoder = cases.make(method, 2, 3, 64)
    shape = ([1, 12, 40, 41, 300, 9000], [10, 12, 40, 40, 33, 30])
    layer = Layer(encoder, *shape, make_token_slots, dtype)
    layer.v += 1  # values have a mean
    own, expected = left_out_of(layer)
    rows = layer.rows()
    out = layer.make()(layer.q, rows, left_out=own)
    lengths = torch.tensor(layer.lengths)
    kept = torch.minimum(layer.budgets, lengths)
    plain = attend_naive(layer.q, layer.k, layer.v, rows.selected, kept, scale=SCALE)
    mixed = plain.clone()
    mix_left_out(mixed, layer.v, rows.selected, lengths, kept, expected)
    close = CLOSE[dtype]
    torch.testing.assert_close(out, mixed, atol=close, rtol=close)
    assert not torch.allclose(mixed[3:], plain[3:], atol=3 * close)
    assert torch.equal(mixed[:3], plain[:3])
    torch.testing.assert_close(own.sums, expected.sums, equal_nan=True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sums", torch.zeros(5, 3, 64), r"left_out\.sums\.shape: expected \[any, 2, 64\]"),
        ("sums", torch.zeros(5, 2, 64).double(), r"left_out\.sums\.dtype"),
        ("rows", torch.zeros(3).int(), r"left_out\.rows\.shape: expected \[2\]"),
        ("rows", torch.tensor([0, 5]), r"left_out\.rows: expected 0 to 4, found \[0, 5\]"),
        ("weights", torch.zeros(6, 7), r"left_out\.weights\.shape: expected \[6, 8\]"),
    ],
)
def test_sums_that_do_not_fit_are_named(make_token_slots, field, value, message) -> None:
    layer = Layer(cases.make("hata", 2, 3, 64), [90, 300], [20, 30], make_token_slots)
    left_out = left_out_of(layer)[0]._replace(**{field: value})
    with pytest.raises(ValueError, match=message):
        layer.make()(layer.q, layer.rows(), left_out=left_out)


@DTYPES
@pytest.mark.parametrize("method", ["hata", "asymmetric", "hashattention"])
def test_queries_of_a_fused_projection(make_token_slots, method, dtype) -> None:
    layer = Layer(cases.make(method, 2, 3, 64), [90, 300], [20, 30], make_token_slots, dtype)
    layer.q = torch.randn(2, 10, 64).to(dtype)[:, :6]
    codes = layer.codes.clone()
    rows = layer.rows()
    layer.check(rows, layer.make()(layer.q, rows))
    assert torch.equal(layer.codes, codes)


def with_random_codes(layer: Layer, values: int) -> Layer:
    """Codes that have nothing to do with the keys, of few values, and any scales."""
    some = torch.randint(-(2**31), 2**31, (values, layer.encoder.words), dtype=torch.int32)
    layer.codes.copy_(some[torch.randint(values, layer.codes.shape[:2])])
    layer.codes[::7] = ~layer.codes[::7]
    if layer.scales is not None:
        most = 2**layer.encoder.scale_bits
        scales = torch.randint(0, most, layer.scales.shape)
        scales[::5], scales[1::5] = 0, most - 1
        layer.scales.copy_(scales.to(layer.scales.dtype))
    return layer


# Tokens that are scored fill blocks of 256, but for one, or one more.
AROUND_BLOCKS = [267, 268, 269, 523, 524, 525, 1036]


@pytest.mark.parametrize("values", [1, 2, 40])
@pytest.mark.parametrize("scale_bits", [0, 8, 16])
@pytest.mark.parametrize(("group", "bits"), [(1, 32), (3, 96), (8, 128), (13, 64)])
def test_ties_are_the_earlier_tokens(make_token_slots, group, bits, scale_bits, values) -> None:
    encoder = cases.make("hata", 2, group, 64, bits, scale_bits=scale_bits)
    budgets = [13, 267, 200, 100, 523, 14, 1035]
    layer = with_random_codes(Layer(encoder, AROUND_BLOCKS, budgets, make_token_slots), values)
    rows = layer.rows()
    layer.check(rows, layer.make()(layer.q, rows))


@pytest.mark.parametrize("query_bits", range(1, 9))
def test_every_number_of_planes(make_token_slots, query_bits) -> None:
    options = {"query_bits": query_bits, "stages": 2}
    encoder = cases.make("asymmetric", 3, 2, 64, 256, **options)
    layer = with_random_codes(Layer(encoder, [700, 90], [40, 89], make_token_slots), 30)
    rows = layer.rows()
    layer.check(rows, layer.make()(layer.q, rows))
    assert not rows.selected.eq(-987654321).any()


@pytest.mark.parametrize("ends", [(0, 0), (90, 0), (0, 90), (90, 90), (1000, 1000)], ids=str)
def test_sinks_and_recent_tokens_beyond_the_budget(make_token_slots, ends) -> None:
    encoder = cases.make("hata", 2, 3, 64)
    layer = Layer(encoder, [700, 30, 81], [50, 20, 80], make_token_slots, ends=ends)
    rows = layer.rows()
    layer.check(rows, layer.make()(layer.q, rows))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 70)), min_size=1, max_size=4),
    st.integers(0, 20),
    st.integers(0, 20),
    st.sampled_from(["hata", "asymmetric"]),
)
def test_any_lengths_budgets_and_ends(make_token_slots, shape, sink, recent, method) -> None:
    lengths, budgets = map(list, zip(*shape, strict=True))
    encoder = cases.make(method, 2, 2, 32)
    layer = Layer(encoder, lengths, budgets, make_token_slots, ends=(sink, recent))
    layer = with_random_codes(layer, 3)
    rows = layer.rows()
    out = layer.make()(layer.q, rows)
    if bool(layer.ranked().any()):
        layer.check(rows, out)
    assert (rows.selected >= 0).sum(-1).tolist() == [[min(pair)] * 2 for pair in shape]


@DTYPES
@pytest.mark.parametrize("group", [1, 3])
def test_whole_rows_get_what_torch_native_computes(make_token_slots, group, dtype) -> None:
    """The very call of SGLang's backend, bit for bit, beside other rows and alone."""
    encoder = cases.make("asymmetric", 3, group, 64, 128, stages=2)
    lengths = [1, 17, 230, 256, 300]
    layer = Layer(encoder, lengths, [256] * 5, make_token_slots, dtype)
    made = layer.make()
    for some in (slice(None), slice(4), *(slice(n, n + 1) for n in range(4))):
        out = made(layer.q[some], layer.rows(some))
        rows = list(range(5))[some]
        for found, row in zip(out, rows, strict=True):
            if row == 4:
                continue
            tokens = layer.table[row, : lengths[row]]
            expected = scaled_dot_product_attention(
                layer.q.movedim(0, 1)[:, row : row + 1].unsqueeze(0),
                layer.k[tokens].movedim(0, 1).unsqueeze(0),
                layer.v[tokens].movedim(0, 1).unsqueeze(0),
                enable_gqa=group > 1,
                scale=SCALE,
                is_causal=False,
            )
            assert torch.equal(found, expected.squeeze(0).movedim(1, 0)[0])


@pytest.mark.parametrize("method", ["hata", "asymmetric", "hashattention"])
def test_no_row_depends_on_the_others(make_token_slots, method) -> None:
    encoder = cases.make(method, 2, 3, 64)
    layer = Layer(encoder, [300, 900, 5, 64], [64] * 4, make_token_slots, torch.bfloat16)
    made, together = layer.make(), layer.rows()
    out = made(layer.q, together)
    for row in range(4):
        alone = layer.rows(slice(row, row + 1))
        assert torch.equal(made(layer.q[row : row + 1], alone)[0], out[row])
        assert torch.equal(alone.selected[0], together.selected[row])


@DTYPES
def test_weights_that_vanish(make_token_slots, dtype) -> None:
    """Logits hundreds apart: most weights are below the smallest float."""
    layer = Layer(cases.make("hata", 2, 3, 64), [500], [100], make_token_slots, dtype)
    reach = (layer.k.float() @ layer.q[0].float().T * SCALE).abs().amax((0, 1))  # of a head
    layer.q = (layer.q.float() * (400 / reach)[:, None]).to(dtype)
    rows = layer.rows()
    out = layer.make()(layer.q, rows)
    for head in range(6):
        slots = rows.selected[0, head // 3].long()
        logits = layer.k[slots, head // 3].double() @ layer.q[0, head].double() * SCALE
        assert logits.max() - logits.min() > 200
        expected = logits.softmax(0) @ layer.v[slots, head // 3].double()
        close = {torch.bfloat16: 1e-2, torch.float16: 1e-3, torch.float32: 5e-4}[dtype]
        torch.testing.assert_close(out[0, head].double(), expected, atol=close, rtol=close)


@pytest.mark.parametrize("method", ["hata", "asymmetric", "hashattention"])
def test_what_a_step_did_is_counted(make_token_slots, method) -> None:
    bits = 64 if method == "hashattention" else 96
    encoder = cases.make(method, 2, 2, 64, bits)
    layer = Layer(encoder, [1, 40, 300], [10, 40, 33], make_token_slots)
    made, tally = layer.make(), torch.full((SIZE,), 2**40)
    made(layer.q, layer.rows(), None, tally)
    assert (tally - 2**40).tolist() == [0, 1, 341, 1 + 40 + 33]
    made(layer.q, layer.rows(), torch.tensor([3, 7, 5]), tally)
    assert (tally - 2**40).tolist() == [3, 2, 682, 2 * (1 + 40 + 33)]
    for row in range(2):  # a context within its budget alone, one of which all is kept
        made(layer.q[row : row + 1], layer.rows([row]), None, tally)
    assert (tally - 2**40).tolist() == [3, 4, 682 + 41, 2 * 74 + 41]


def test_wrong_arguments_are_named(make_token_slots) -> None:
    layer = Layer(cases.make("hata", 2, 3, 64), [90, 300], [20, 30], make_token_slots)
    made, codes = layer.make(), layer.codes.clone()
    q, slots = layer.q, torch.tensor([3, 7])
    for wrong, message in (
        ((q.half(), layer.rows()), r"q\.dtype: expected torch\.float32, found torch\.float16"),
        ((q[:1], layer.rows()), r"q\.shape: expected \[2, 6, 64\], found \[1, 6, 64\]"),
        ((q[:, :5], layer.rows()), r"q\.shape: expected \[2, 6, 64\]"),
        ((torch.randn(2, 6, 128)[..., ::2], layer.rows()), r"q\.stride\(2\): expected 1, found 2"),
        ((q, layer.rows(), slots.float()), r"slots\.dtype: expected torch\.int32"),
        ((q, layer.rows(), slots[:, None]), r"slots\.shape: expected \[any\]"),
        ((q, layer.rows(), slots - 4), r"slots: expected 0 to 349"),
        ((q, layer.rows(), slots + 345), r"slots: expected 0 to 349"),
        ((q, layer.rows(), slots, torch.zeros(3).long()), r"tally\.shape: expected \[4\]"),
        ((q, layer.rows(), slots, torch.zeros(4)), r"tally\.dtype: expected torch\.int64"),
    ):
        with pytest.raises(ValueError, match=message):
            made(*wrong)
    for slot in (-1, 350):
        layer.table[1, 200] = slot
        with pytest.raises(ValueError, match="slots: expected 0 to 349"):
            made(q, layer.rows())
    assert torch.equal(layer.codes, codes)


def test_wrong_buffers_are_named(make_token_slots) -> None:
    layer = Layer(cases.make("hata", 2, 3, 64), [90], [20], make_token_slots)
    good = (layer.encoder, layer.k, layer.v, layer.codes, None)
    for place, wrong, message in (
        (1, layer.k[:, :1], r"k_cache\.shape: expected \[any, 2, 64\]"),
        (1, layer.k.double(), r"k_cache\.dtype"),
        (2, layer.v.half(), r"v_cache\.dtype: expected torch\.float32"),
        (3, layer.codes[1:], r"codes\.shape: expected \[140, 2, 2\]"),
        (3, layer.codes.long(), r"codes\.dtype"),
        (4, torch.zeros(140, 2, dtype=torch.uint8), "scales: expected None, found torch.uint8"),
    ):
        arguments = [*good[:place], wrong, *good[place + 1 :]]
        with pytest.raises(ValueError, match=message):
            SparseLayer(*arguments, sink=1, recent=1, scale=SCALE)
    with pytest.raises(ValueError, match="sink and recent: expected at least 0"):
        SparseLayer(*good, sink=1, recent=-1, scale=SCALE)


def test_wrong_rows_are_named() -> None:
    table, lengths = torch.zeros(2, 9, dtype=torch.int32), torch.tensor([3, 9])
    budgets = torch.tensor([1, 2], dtype=torch.int32)
    for wrong, message in (
        ((table[:, ::2], lengths, budgets), "token_slots strides"),
        ((table[:, :8], lengths, budgets), "token_slots strides"),
        ((table, lengths + 1, budgets), "seq_lens: expected 1 to 9, found"),
        ((table, lengths - 3, budgets), "seq_lens: expected 1 to 9, found"),
        ((table, lengths, budgets - 1), "budgets: expected at least 1, found"),
        ((table, lengths, budgets.long()), r"budgets\.dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            Rows(*wrong, 2)
