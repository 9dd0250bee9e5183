"""What shifts of either kind share: plans, reports, gates, folds and upkeep beside them."""
