//! `#[case]`: registers a function as a case of the integration tests, where it is written.

use proc_macro::{Delimiter, TokenStream, TokenTree};

/// Registers the function below as a case, named after it and its module.
///
/// `fn(&Db)` runs in a database of the shared cluster, `fn()` with clusters of its own. Each option is a method of
/// `Case`: `#[case(alone, since = 14)]` calls `.alone()` and `.since(14)`.
#[proc_macro_attribute]
pub fn case(options: TokenStream, function: TokenStream) -> TokenStream {
    let registration = match (constructor(function.clone()), calls(options)) {
        (Ok(constructor), Ok(calls)) => register(&format!("{constructor}{calls}")),
        (Err(reason), _) | (_, Err(reason)) => format!("::core::compile_error!({reason:?});"),
    };
    let mut expanded: TokenStream = registration.parse().expect("Rust");
    expanded.extend(function);
    expanded
}

/// Returns the item that puts a case into the list of all.
fn register(case: &str) -> String {
    format!(
        "const _: () = {{
            #[::pg_background_mgr_tests::case::linkme::distributed_slice(::pg_background_mgr_tests::case::CASES)]
            #[linkme(crate = ::pg_background_mgr_tests::case::linkme)]
            static CASE: ::pg_background_mgr_tests::Case = ::pg_background_mgr_tests::Case::{case};
        }};"
    )
}

/// Returns the call that makes the case of a function.
fn constructor(function: TokenStream) -> Result<String, String> {
    let mut tokens = function.into_iter().skip_while(|token| !is_word(token, "fn")).skip(1);
    let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(parameters))) = (tokens.next(), tokens.next()) else {
        return Err("a case is a function without generics".to_owned());
    };
    let kind = match parameters.delimiter() {
        Delimiter::Parenthesis if parameters.stream().is_empty() => "private",
        Delimiter::Parenthesis => "shared",
        _ => return Err("a case is a function".to_owned()),
    };
    Ok(format!("{kind}(::core::module_path!(), ::core::line!(), \"{name}\", {name})"))
}

fn is_word(token: &TokenTree, word: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident.to_string() == word)
}

/// Returns the method calls of the options.
fn calls(options: TokenStream) -> Result<String, String> {
    let options: Vec<TokenTree> = options.into_iter().collect();
    let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(sign) if sign.as_char() == ',');
    options.split(is_comma).filter(|option| !option.is_empty()).map(call).collect()
}

fn call(option: &[TokenTree]) -> Result<String, String> {
    match option {
        [TokenTree::Ident(name)] => Ok(format!(".{name}()")),
        [TokenTree::Ident(name), TokenTree::Punct(sign), TokenTree::Literal(value)] if sign.as_char() == '=' => {
            Ok(format!(".{name}({value})"))
        }
        _ => Err("an option of a case is `name` or `name = literal`".to_owned()),
    }
}
