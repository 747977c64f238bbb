"""The codec behind `own` and `auto`: transforms, one step for all, entropy coding.

Every adapter, or cluster of related ones, is turned into vectors whose error adds up to the error
of dW; all are quantized with one step, and what is quantized is entropy coded. That is reverse
water-filling: a direction gets bits as long as they pay, the weakest none.

rooms, from the bytes up: ``tables`` (the models of the entropy coder), ``rans`` (lanes of symbols
to bytes), ``vectors`` (integer matrices to bytes), ``rates`` (what a choice costs, without torch),
``own`` and ``klt`` (the transforms), ``plan`` (clusters, modes, the step), ``blobs`` (one module
of one task as bytes), ``build`` and ``store`` (a collection, on disk and back).
"""
