// Names of models, jobs and devices, the same rule for all.  PROTOCOL 1.

/** True if `value` is a string of a-z, 0-9 and '-', 1 to 63 long, that does not begin with '-'. */
export const isName = (value) => typeof value === "string" && /^[a-z0-9][a-z0-9-]{0,62}$/.test(value);
