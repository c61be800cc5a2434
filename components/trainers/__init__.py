"""Trainings: embedded dLLM (pretrain), pair shifts (influence), imitation (distill), GRPO and UPO (reinforce)."""
