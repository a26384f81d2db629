//! Rights: whose a job has, who may launch, see and stop it, and what others can do to the extension.

mod every_function;
mod identity;
mod job_visibility;
mod log_attacks;
mod logins;
mod privileges;
mod restricted_contexts;
mod role_changes;
mod search_path_attacks;
mod security_definer;
