"""DeepSpeed's JSON: reading it, adopting its literal values for the run, and replacing every "auto".

DeepSpeed itself replaces no "auto": `zero_optimization.stage: "auto"` means no ZeRO, `bf16.enabled: "auto"` means
false, and unknown top-level keys are ignored silently. So this package returns only checked, literal values.
The order is load -> adopt (which fixes the run's batch size, clipping and precision) -> resolve, once per engine.
"""

from ds_rag.config.deepspeed_config.keys import check_config, load
from ds_rag.config.deepspeed_config.resolve import Known, adopt, adopt_pair, resolve, while_loading

__all__ = ["Known", "adopt", "adopt_pair", "check_config", "load", "resolve", "while_loading"]
