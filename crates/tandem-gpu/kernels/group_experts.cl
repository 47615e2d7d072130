// Orders a batch's uses of experts by expert, and those of one expert by token, as `ExpertUses` of tandem-runtime. A
// use is a token's choice of an expert; every token has two.
//
// One work-group does it all: it counts, adds the counts up, and puts every use in its place. Each expert is one
// work-item's, which looks at all choices in order, so the order is the same every time. Compiled for EXPERTS.

// `choices` and `weights` are [token][2]; `starts` has one more than there are experts; `places` [token][2] says where
// each choice went.
KERNEL group_experts(IN(choices), IN(weights), const uint tokens, OUT(starts), OUT(use_tokens), OUT(use_weights),
                     OUT(places)) {
    IN_PTR(uint, choices);
    IN_PTR(float, weights);
    OUT_PTR(uint, starts);
    OUT_PTR(uint, use_tokens);
    OUT_PTR(float, use_weights);
    OUT_PTR(uint, places);
    local uint begins[EXPERTS + 1];
    for (uint expert = get_local_id(0); expert < EXPERTS; expert += GROUP) {
        uint count = 0;
        for (uint use = 0; use < 2 * tokens; use++) {
            count += choices[use] == expert ? 1 : 0;
        }
        begins[expert + 1] = count;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    if (get_local_id(0) == 0) {
        begins[0] = 0;
        for (uint expert = 0; expert < EXPERTS; expert++) {
            begins[expert + 1] += begins[expert];
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint expert = get_local_id(0); expert <= EXPERTS; expert += GROUP) {
        starts[expert] = begins[expert];
    }
    for (uint expert = get_local_id(0); expert < EXPERTS; expert += GROUP) {
        uint at = begins[expert];
        for (uint use = 0; use < 2 * tokens; use++) {
            if (choices[use] == expert) {
                use_tokens[at] = use / 2;
                use_weights[at] = weights[use];
                places[use] = at;
                at++;
            }
        }
    }
}
