//! Much at once, at random, or too little of what is needed. These cases are the soak test.

mod attached_jobs;
mod batches;
mod exhaustion;
mod limits;
mod odd_arguments;
mod out_of_memory;
mod random_crashes;
