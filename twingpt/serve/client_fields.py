"""Fields that clients of other local servers send of their own accord: used under our name, or ignored and told.

A name that no server is known to take is refused, since it is most likely a slip of the pen.
"""

ALIASES = {
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "rep_pen": "repetition_penalty",
}
"""A field of llama.cpp, Ollama or KoboldCpp -> the same one here."""

_LLAMA_CPP = """
    cache_prompt chat_template_kwargs dry_allowed_length dry_base dry_multiplier dry_penalty_last_n
    dry_sequence_breakers dynatemp_exponent dynatemp_range id_slot ignore_eos lora min_keep mirostat mirostat_eta
    mirostat_tau n_discard n_indent n_keep n_probs penalize_nl post_sampling_probs reasoning_format repeat_last_n
    response_fields return_progress return_tokens samplers slot_id t_max_predict_ms tfs_z timings_per_token top_n_sigma
    typical_p typ_p xtc_probability xtc_threshold
"""
_OLLAMA = "keep_alive num_batch num_ctx num_gpu num_keep num_thread options raw think"
_LM_STUDIO = "draft_model ttl"
_VLLM = """
    add_generation_prompt add_special_tokens allowed_token_ids bad_words cache_salt chat_template
    continue_final_message detokenize documents guided_decoding_backend guided_whitespace_pattern
    include_stop_str_in_output length_penalty min_tokens mm_processor_kwargs priority prompt_logprobs request_id
    return_token_ids return_tokens_as_token_ids skip_special_tokens spaces_between_special_tokens stop_token_ids
    truncate_prompt_tokens use_beam_search vllm_xargs
"""
_TEXT_GENERATION = """
    add_bos_token ban_eos_token character do_sample early_stopping encoder_repetition_penalty epsilon_cutoff
    eta_cutoff guidance_scale instruction_template length_penalty max_context_length mode name1 name2 negative_prompt
    no_repeat_ngram_size num_beams penalty_alpha preset rep_pen_range rep_pen_slope repetition_penalty_range
    sampler_order sampler_priority sampler_seed skew smoothing_curve smoothing_factor temperature_last tfs top_a
    truncation_length typical
"""
_OPENAI_AND_ROUTERS = """
    audio include_reasoning models prediction prompt_cache_retention provider reasoning route thinking transforms usage
    web_search_options
"""

IGNORED = frozenset(" ".join((_LLAMA_CPP, _OLLAMA, _LM_STUDIO, _VLLM, _TEXT_GENERATION, _OPENAI_AND_ROUTERS)).split())
"""Accepted without effect; the answer's header x-twingpt-ignored names those that a request gave."""
