"""The codec behind the methods `own` and `auto`: transform, quantize in one step, entropy code.

Every adapter, or cluster of related ones, is turned into vectors whose squared errors add up to the
error of dW; all are quantized with one step, and the integers are entropy coded. That is reverse
water-filling: a direction gets bits as long as they pay, the weakest none
(docs/mathematics.md#the-codec).

Modules, from the bytes up: ``tables`` (the models of the entropy coder), ``rans`` (symbols to
bytes, in lanes), ``vectors`` (integer matrices to bytes), ``quantizer`` and ``rates`` (what a step
costs), ``own``, ``klt`` and ``delta`` (the transforms), ``blobs`` (one module of one task as
bytes), ``layer`` (one module of all tasks), ``forecast`` (what a collection will cost at each step)
and ``rate_control`` (keeping to a target while coding).
"""
