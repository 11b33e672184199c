"""One trial on one machine: its rounds, then what its tickets are worth. Knows no Ray. Begin with `run`."""
