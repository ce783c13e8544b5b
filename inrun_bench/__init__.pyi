from inrun_bench.adjoint import (
    coalition_gradient_shapley as coalition_gradient_shapley,
)
from inrun_bench.adjoint import (
    control_variate_shapley as control_variate_shapley,
)
from inrun_bench.adjoint import (
    few_run_shapley as few_run_shapley,
)
from inrun_bench.adjoint import (
    unrolled_influence as unrolled_influence,
)
from inrun_bench.attribution import InRunShapley as InRunShapley
from inrun_bench.benchmarks import Results as Results
from inrun_bench.benchmarks import benchmark as benchmark
from inrun_bench.methods import Method as Method
from inrun_bench.metrics import (
    RemovalCurve as RemovalCurve,
)
from inrun_bench.metrics import (
    agreement as agreement,
)
from inrun_bench.metrics import (
    detection as detection,
)
from inrun_bench.metrics import (
    linear_datamodelling_score as linear_datamodelling_score,
)
from inrun_bench.metrics import (
    removal_curve as removal_curve,
)
from inrun_bench.version import __version__ as __version__
