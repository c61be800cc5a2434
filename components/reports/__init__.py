"""What people look at: figures, tables, the decoding-order page and the model card, all made from the stages' files.

Nothing here decodes, trains or logs: it reads tables that ``evaluation`` and the trainers wrote and writes pictures and
text. The same input gives the same bytes (figures: on the same matplotlib). matplotlib and rich are imported when used.
"""
