"""Give bits so that the sum of the linears' own output errors is least, by exact dynamic programming.

    e_lk = ||X (Ŵ_k - W)ᵀ||² / ||X Wᵀ||²  for linear l at k bits, X [tokens, in] its inputs
    min sum_l e_{l, k_l}  with  sum_l bytes_{l, k_l} <= bytes of the mean number of bits everywhere

Makes every linear at each number of bits (tenth of sparsity, half of the rank) within `reach` of the mean,
with the stages after it, on the inputs of the dense model; plans that for those stages and stores nothing
itself. Needs no gradient, and so does not see what the rest of the model makes of an error: the least sum of
errors need not be the best model.
Frantar & Alistarh, SPDY, arXiv 2201.13096; for language models a baseline of EvoPress, arXiv 2410.14649.
"""

from backend.parameters import MeanBits, MeanRank, MeanSparsity, Over, Reach
from backend.registry import Claim, method
from backend.solvers.budget import around, budget_of_mean, exact, mean_of
from backend.views import Work


@method(
    paper="arXiv:2201.13096",
    needs="gram",
    plans="bits",
    tries=around,
    claim=Claim(
        "At 3 bits on average, the bits of the least sum of output errors lose less than 3 bits everywhere",
        whose="ours",
        paper_says="SPDY spreads sparsity under a limit on time, and searches the sum's coefficients.",
        better=(
            {"method": "allocate.dp", "params": {"bits": 3.0}},
            {"method": "quantize.gptq", "params": {"bits": 3}},
        ),
        worse=({"method": "quantize.gptq", "params": {"bits": 3}},),
        metric="divergence.kl",
    ),
)
def dp(
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
    chosen = exact(found.bytes, found.errors, budget_of_mean(found.bytes, found.values, mean_of(asked)))
    work.put(found.plan(chosen))
