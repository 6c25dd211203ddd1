"""Write a memory in a form that other programs and the hub take."""
