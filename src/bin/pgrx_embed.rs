extern crate pgrx_013 as pgrx;

pgrx::pgrx_embed!();
