"""The `.pt` layouts that existing trainers read."""
