"The network: its photos, its weights, its learner."
