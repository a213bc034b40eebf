"""Labels of samples: a benchmark's annotations, joined by `id`, and what the answers say."""
