"""DeepSpeed's JSON: read it, let the run adopt its literal values, resolve every "auto".

Plain DeepSpeed resolves no "auto": `zero_optimization.stage: "auto"` means no ZeRO, `bf16.enabled: "auto"`
means false, and unknown top-level keys pass in silence. So only checked, literal values leave this package.
The order is load -> adopt (the run now knows its batch, clipping, precision) -> resolve, once per engine.
"""

from ds_rag.config.deepspeed_config.keys import check, load
from ds_rag.config.deepspeed_config.resolve import Known, adopt, adopt_pair, resolve, while_loading

__all__ = ["Known", "adopt", "adopt_pair", "check", "load", "resolve", "while_loading"]
