"""What a vision-language model sees and says, and the reward made from it."""
