"""Give bits or weights to the linears whose error the output feels most, as backward passes predict it.

    s_lk = 1/2T E_y (sum_t g_t . (Ŵ_k - W) x_t)²  for linear l at k bits: the KL that it costs alone
    min sum_l s_{l, k_l}  with  sum_l bytes_{l, k_l} <= bytes of the mean number of bits everywhere

with x_t [in] the input of the linear at token t of T, g_t [out] the gradient of the window's -ln P(y) with
respect to its output there, and labels y drawn several times from the model's own distribution: second order
of the KL in the Fisher matrix, without terms between linears. Plans walk the lower convex hulls, steepest
gain a byte first. Makes every linear at each number of bits (tenth of sparsity, half of the rank) within
`reach` of the mean, with the stages after it, on the inputs of the dense model; plans that for those stages
and stores nothing itself.
What linears do to each other counts the more the larger the KL is, so it is strongest where little is lost.
Martens, New insights and perspectives on the natural gradient method, arXiv 1412.1193.
"""

from backend.parameters import PREDICTED_WINDOWS, MeanBits, MeanRank, MeanSparsity, Over, Reach
from backend.registry import Claim, method
from backend.solvers.budget import around, budget_of_mean, ladder, mean_of
from backend.views import Work


@method(
    paper="arXiv:1412.1193",
    needs="gram",
    plans="bits",
    tries=around,
    # A backward pass takes about as long as two passes forward.
    scores=lambda params: PREDICTED_WINDOWS,
    claim=Claim(
        "At 4 bits on average, bits where the predicted KL asks for them lose less than 4 bits everywhere",
        whose="ours",
        paper_says="A review of natural gradients: the KL is quadratic in the Fisher matrix. No bits.",
        better=(
            {"method": "allocate.fisher", "params": {"bits": 4.0}},
            {"method": "quantize.gptq", "params": {"bits": 4}},
        ),
        worse=({"method": "quantize.gptq", "params": {"bits": 4}},),
        metric="divergence.kl",
    ),
)
def fisher(
    work: Work,
    *,
    over: Over = "bits",
    bits: MeanBits = 3.0,
    sparsity: MeanSparsity = 0.5,
    rank: MeanRank = 64,
    reach: Reach = 1,
) -> None:
    """Plan bits, a sparsity, a rank or a mixture for every linear."""
    asked = {"over": over, "bits": bits, "sparsity": sparsity, "rank": rank, "reach": reach}
    found = work.choices(over, around(asked))
    steps = ladder(found.bytes, found.predicted())
    chosen = steps.plan(budget_of_mean(found.bytes, found.values, mean_of(asked)))
    work.put(found.plan(chosen))
