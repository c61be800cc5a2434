"""Training: an embedded dLLM (pretrain), imitation of a reference policy (distil), reinforcement (grpo, upo)."""
