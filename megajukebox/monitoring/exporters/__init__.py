"""Who hears of it: Prometheus, the terminal, boards, webhooks, a bundle for somebody far away."""
