"""How a graph runs. The only place that touches Ray's private names; each use says why."""
