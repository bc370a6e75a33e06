"""The page's sections: what each template shows, as a function of the study."""
