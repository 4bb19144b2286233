//! openraft's own suite for storage, over our adapters.
