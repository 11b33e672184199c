"""What a sweep and a trial are: keys, defaults, checks, and YAML with line numbers. Begin with `schema`."""

from raylt.spec.load import dump_yaml, load_spec, parse_spec
from raylt.spec.schema import SweepSpec
from raylt.spec.trials import TrialSpec, plan

__all__ = ["SweepSpec", "TrialSpec", "dump_yaml", "load_spec", "parse_spec", "plan"]
