"""Results of batches, durable before their fragment is finished."""
