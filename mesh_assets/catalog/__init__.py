"""Catalogs: each product's own record beside its data, and the enterprise's fold of all of them.

- ``releases`` — the contracts under which a product's data was made, each kept as it was.
- ``local`` — the product's record: ``catalog/record.json``.
- ``enterprise`` — folds the records, the versions and the lineage of all products into Delta tables.
- ``graph``, ``search``, ``finding`` — what is asked of those tables.

Everything here is derived: delete the enterprise's tables and fold again, and the same bytes come back.
"""
