"""From the leaves of a tree to the samples that are trained."""
